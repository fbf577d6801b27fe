"""What a publication leaves behind in the run folder and beside the output, and a crash has kept from being deleted."""

from __future__ import annotations

from data import publications
from data.destination import Destination
from data.ledger import Ledger
from data.manifest import Manifest
from data.retry import load_retries
from data.run_folder import RunFolder


def delete_leftovers(run: RunFolder, target: Destination, manifest: Manifest) -> None:
    """Delete what this ledger's verified publication of `manifest` has made needless; nothing if it is not this one's.

    What retries planned since need stays: the data of their finished shards, the prompts of the others.
    """
    if not publications.recorded(run, manifest):
        return
    target.clean()
    publications.withdraw(run)
    if not manifest.complete:
        return
    run.sweep()  # what a worker that was killed has left there
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
