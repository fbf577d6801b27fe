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
    """Delete what this ledger's verified publication of `manifest` has made needless; nothing if it is not this one's.

    What retries planned since need stays: the data of their finished shards, the prompts of the others.
    """
    if not publications.recorded(run, manifest):
        return
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
    unfinished = {shard.id for shard in later if shard.id not in commits}
    for path in run.prompts.iterdir():  # those of a plan that died too, which no commit and no plan names
        if path.stem not in unfinished:
            path.unlink(missing_ok=True)
