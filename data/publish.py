"""Publication: the one result at the output path, whole, verified and durable, or what was there before.

1. Nothing is left to do if this ledger's result is there already. 2. Every shard is committed and the error budget
holds. 3. The result is assembled in a hidden sibling, synced and hashed again. 4. Its manifest is recorded in the run
folder. 5. What it replaces is moved to another hidden name. 6. It is renamed into place and the rename made durable.
7. The manifest is written. 8. What was replaced, and the shard data, are deleted.

A crash before 4 leaves a hidden sibling that is built again; between 4 and 7 the record tells by their digests which
bytes are whose, and the steps that are missing are taken; what 5 moved is moved back if it is a result of this ledger,
which may be the only copy of its answers, or a file's manifest alone; after 7 only deletions are repeated. A result
without its manifest is none, so no reader can take a publication in progress for a finished one. On an object store 5
and 6 are the sending of parts, which lie beside what they replace, and 7 is conditional (`data.store_target`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from data import publications
from data.answers import Answers, OverBudget
from data.assemble import assemble
from data.bucket import StoreError
from data.destination import Destination, destination
from data.errors import InputError, RunError
from data.json_types import JsonTypes
from data.ledger import Ledger
from data.leftovers import delete_leftovers
from data.manifest import Manifest, content_digest
from data.output import Layout
from data.published import published, verify_published
from data.retry import finished_retries, load_retries
from data.run_folder import RunFolder
from data.settings import OutputSettings
from data.target import remove
from data.verification import problems, refuse_foreign, refuse_others, verified
from data.window import Window

if TYPE_CHECKING:
    from data.dataset import Dataset

__all__ = ["OverBudget", "finish", "prepare_output", "publish", "published", "published_base", "verify_published"]


def prepare_output(run: RunFolder, output: OutputSettings, *, fresh: bool = False) -> Manifest | None:
    """Look at the output before a run: finish a publication that died, and refuse to replace what is not ours.

    Returns the manifest of this run's result if it is there. A complete one is verified and, unless `fresh`, all there
    is to do; a partial one is to be replaced, so its own files need not be whole. InputError: something else is there,
    and neither `fresh` nor an earlier `fresh` of this ledger allows to replace it. RunError: the published bytes are
    damaged, or others lie beside them.
    """
    target = destination(output.path, run)
    current = _settle(run, target, fresh)
    ours = current is not None and publications.recorded(run, current)
    if current is not None and ours and current.complete:
        _drop_replaced(run, target, current)
        return verified(run, target, current)
    if not target.occupied:
        return None
    refuse_foreign(target)
    if fresh and not ours:
        publications.permit(run, target)
    permitted = publications.permitted(run, target, target.manifest_digest())
    if not ours and (permitted or _begun(run, target, current)):
        return None
    if current is None or current.run != run.id:
        what = "is not empty and not a result"
        if current is not None:
            what = f"holds the result of another run{_changed_model(run, current)}"
        raise InputError(f"{target.name} {what}; choose another --output, or replace it with --fresh")
    if current.complete:
        return verified(run, target, current)
    refuse_others(run, target, current)
    return current


def publish(
    run: RunFolder,
    windows: Sequence[Window],
    dataset: Dataset,
    output: OutputSettings,
    results: pa.Schema,
    manifest_fields: Mapping[str, Any],
    *,
    partial: bool = False,
    fresh: bool = False,
) -> Manifest:
    """Publish the results of a run's committed shards at `output.path` and return the manifest.

    `results` is the run's `results.result_schema`. With `partial`, rows without a result become errors with the code
    `deadline`, outside the budget, and windows that are not planned may be missing. A complete result of this ledger
    is verified and stays as it is, except that retried error rows replace it; so does a partial one, if it is whole and
    another partial one is asked for. The caller holds the locks of the run and of `Target.lock`.

    OverBudget: too many error rows; nothing changed. RunError: a committed or published file is damaged or missing,
    the input has changed, or shards are not committed. InputError: as in `prepare_output` and `output.Layout.of`.
    """
    target = destination(output.path, run)
    current = prepare_output(run, output, fresh=fresh)
    replaced = _replaced(run, target, current)
    ledger = Ledger(run)
    retries = finished_retries(load_retries(run), ledger, published_base(run, output))
    if current is not None and _stays(run, target, current, len(retries), partial=partial):
        delete_leftovers(run, target, current)
        return current
    refuse_foreign(target)
    state = _state(output, ledger, windows, retries, complete=not partial)
    found = publications.assembled(run, target, state)
    if found is None:
        answers = Answers(run, windows, retries, ledger, results, _base(run, output), partial)
        answers.check(output.error_budget)
        found = _assemble(answers, target, dataset, output, manifest_fields)
    manifest, place = found
    manifest = publications.record(run, manifest, state)
    target.put(place, manifest, replaced)
    _drop_replaced(run, target, manifest)
    verified(run, target, manifest)
    delete_leftovers(run, target, manifest)
    return manifest


def _changed_model(run: RunFolder, current: Manifest) -> str:
    """Which parts of the model are others than those of a result, as it is where a pointer was moved since."""
    theirs, ours = current.extra.get("digests"), run.identity.get("model")
    if not isinstance(theirs, dict) or not isinstance(ours, dict):
        return ""
    changed = [name for name, digest in ours.items() if theirs.get(name) != digest]
    return f", with another {' and '.join(changed)}" if changed else ""


def published_base(run: RunFolder, output: OutputSettings) -> tuple[Destination, Manifest] | None:
    """This ledger's complete result, which stands for the shard data that was deleted after it was published."""
    target = destination(output.path, run)
    manifest = target.read_manifest()
    if manifest is not None and manifest.complete and publications.recorded(run, manifest):
        return target, manifest
    return None


def published_elsewhere(run: RunFolder, output: OutputSettings) -> bool:
    """Whether this ledger's complete result was published, its shard data deleted, and is not at `output.path`.

    A run without any shard has lost nothing: its result is made anew, wherever it is wanted.
    """
    deleted = any(run.commits.iterdir()) and not any(run.shards.iterdir())
    return deleted and published_base(run, output) is None and publications.completed(run)


def _base(run: RunFolder, output: OutputSettings) -> tuple[Destination, Manifest] | None:
    base = published_base(run, output)
    if published_elsewhere(run, output):
        raise RunError(
            f"the results of this run were published and deleted from {run.path}, and are not at {output.path}: "
            "restore them there, or compute them again with --fresh"
        )
    return base


def _assemble(
    answers: Answers, target: Destination, dataset: Dataset, output: OutputSettings, fields: Mapping[str, Any]
) -> tuple[Manifest, Path]:
    run = answers.run
    for leftover in target.siblings("new"):
        remove(leftover)
    layout = Layout.of(_columns(dataset, answers.windows), answers.results, output, target.format(output.format))
    place = target.hidden("new")
    single = Path(target.name).name if target.single else None
    files, totals = assemble(place, single, dataset, answers.outcomes(), layout)
    files = target.named(place, files)
    if all(file.sha256 for file in dataset.files):
        dataset.verify(dataset.files)
    if totals.ok + totals.errors.total() != totals.rows or sum(file.rows for file in files) != totals.rows:
        raise RunError(f"{totals.rows} rows do not add up to {totals.ok} answers and {totals.errors.total()} errors")
    tokens = dict(totals.tokens)
    for name in ("input", "output"):
        commits = answers.ledger.commits().values()
        tokens[f"computed_{name}"] = sum(commit.tokens[name] for commit in commits if not commit.cached)
    manifest = Manifest(
        run=run.id,
        complete=not answers.partial,
        rows=totals.rows,
        ok=totals.ok,
        errors=dict(sorted(totals.errors.items())),
        tokens=tokens,
        files=files,
        format=layout.format,
        columns=tuple({"name": column.name, "type": str(column.type)} for column in layout.schema),
        prefix=layout.prefix,
        retries=len(answers.retries),
        extra=fields,
    )
    return manifest, place


def _columns(dataset: Dataset, windows: Sequence[Window]) -> pa.Schema:
    """The schema of the whole input; of JSONL rows that are not planned yet the types are found by reading them."""
    if dataset.schema is not None:
        return dataset.schema
    types = JsonTypes()
    for window in windows:
        types.merge(JsonTypes.from_json(window.json_types))
    if not windows or not windows[-1].last:
        for chunk in dataset.chunks(sum(window.rows for window in windows)):
            types.observe(chunk.records)
    return types.schema()


def _state(
    output: OutputSettings, ledger: Ledger, windows: Sequence[Window], retries: Sequence[Window], *, complete: bool
) -> dict[str, Any]:
    """What an assembled result follows from, to know after a crash whether it is the one that is wanted."""
    answers = content_digest({commit.shard: commit.sha256 for commit in ledger.commits().values()})
    settings = output.model_dump(mode="json", include={"format", "include", "prefix"})
    return {"complete": complete, "windows": len(windows), "retries": len(retries), "answers": answers, **settings}


def _settle(run: RunFolder, target: Destination, fresh: bool) -> Manifest | None:
    """The manifest at the target. What a crash has left undone is done now: a manifest that was not written yet is
    written, and a result of this ledger that was moved aside without another one in its place is moved back."""
    try:
        current = target.read_manifest()
    except StoreError:
        raise
    except RunError:
        if fresh or publications.permitted(run, target, target.manifest_digest()):
            return None
        raise
    if current is None and not target.occupied and (aside := publications.found_aside(run, target)) is not None:
        target.restore(aside)  # it may be the only copy of its answers
        current = target.read_manifest()
    if current is None and target.occupied:
        current = publications.placed(run, target)
        if current is None:
            return target.restore_manifest()
        target.write_manifest(current, None)
    return current


def _begun(run: RunFolder, target: Destination, current: Manifest | None) -> bool:
    """Whether all that is there are parts which this ledger had begun to send."""
    return current is None and target.content_named and target.sizes().keys() <= publications.known_files(run)


def _replaced(run: RunFolder, target: Destination, current: Manifest | None) -> str | None:
    """Digest of the manifest that a new result replaces; RunError if it is another than what was looked at."""
    digest = target.manifest_digest()
    seen = None if current is None else hashlib.sha256(current.to_bytes()).hexdigest()
    if digest != seen and not (current is None and publications.permitted(run, target, digest)):
        raise RunError(f"{target.manifest_name} was changed by another run; run again")
    return digest


def _drop_replaced(run: RunFolder, target: Destination, manifest: Manifest) -> None:
    """Delete parts of what the published manifest has replaced; never parts that another run may be sending."""
    if target.content_named:
        gone = publications.replaced_files(run, target) | publications.known_files(run)
        target.drop(gone - {file.name for file in manifest.files})


def _stays(run: RunFolder, target: Destination, current: Manifest, retries: int, *, partial: bool) -> bool:
    """Whether the result that is there is all that is asked for; `retries` are finished."""
    if current.complete:
        return partial or current.retries >= retries
    return partial and not problems(run, target, current)


def finish(run: RunFolder, output: OutputSettings, manifest: Manifest) -> None:
    """Delete what the verified publication of `manifest` leaves behind, and a crash has kept from being deleted.

    Shard data only once it is in a complete result, and nothing if another ledger of the same run has published it:
    then it is this ledger's only copy of work that is to be published elsewhere. What cannot be deleted is a warning.
    The caller holds the locks.
    """
    delete_leftovers(run, destination(output.path, run), manifest)
