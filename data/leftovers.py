"""What a verified publication leaves behind in the run folder and beside the output, and how it goes.

The result is whole without any of these deletions, so one that fails takes nothing back: it is logged as a warning, the
others go on, and the next start of the run makes up for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from data import publications
from data.destination import Destination
from data.errors import RunError
from data.ledger import Ledger
from data.manifest import Manifest
from data.retry import load_retries
from data.run_folder import RunFolder

logger = logging.getLogger(__name__)


def delete_leftovers(run: RunFolder, target: Destination, manifest: Manifest) -> None:
    """Delete what the ledger that published `manifest` needs no more; shard data once it is in a complete result."""
    with _made_up_for():
        target.clean()
    with _made_up_for():
        publications.withdraw(run)
    if manifest.complete:
        with _made_up_for():
            run.sweep()  # what a worker that was killed has left there
        with _made_up_for():
            _delete_shards(run, manifest)


@contextmanager
def _made_up_for() -> Iterator[None]:
    try:
        yield
    except (OSError, RunError) as error:
        logger.warning("the result is whole, but not all that it leaves behind could be deleted: %s", error)


def _delete_shards(run: RunFolder, manifest: Manifest) -> None:
    """Delete results and prompts of shards whose answers the manifest's result holds."""
    if not any(run.shards.iterdir()) and not any(run.prompts.iterdir()):
        return
    commits = Ledger(run).commits()
    later = [shard for window in load_retries(run)[manifest.retries :] for shard in window.shards]
    keep = {f"{commits[shard.id].sha256}.parquet" for shard in later if shard.id in commits}
    for path in run.shards.iterdir():
        if path.name not in keep:
            path.unlink(missing_ok=True)
    for path in run.prompts.iterdir():  # a worker may die between a commit and this
        if path.stem in commits:
            path.unlink(missing_ok=True)
