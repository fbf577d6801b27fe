"""What a ledger has published or is about to: records that let a publication which died be finished, not repeated.

Before an assembled result is moved into place, its whole manifest is recorded under the digest of its bytes and what it
includes. After a crash the bytes at the output, or in a hidden sibling, are found again by that digest. Another record
keeps the permission that `--fresh` gave to replace an older result, so that a resumed run need not start afresh once
more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.durable import write_file
from data.errors import RunError
from data.manifest import Manifest
from data.run_folder import RunFolder

if TYPE_CHECKING:
    from data.destination import Destination


_NOTES = ("replace.json", "replacing.json")


def record(run: RunFolder, manifest: Manifest, state: Mapping[str, Any]) -> Manifest:
    """Record a result about to be placed; `state` is what it was assembled from. The recorded manifest counts."""
    content = json.dumps({"state": state, "manifest": manifest.to_bytes().decode()}, indent=1).encode()
    if not write_file(run.tmp, _path(run, manifest), lambda file: file.write(content)):
        return _read(_path(run, manifest))[0]
    return manifest


def recorded(run: RunFolder, manifest: Manifest) -> bool:
    """Whether this ledger published the result of a manifest, and not an older one of the same run."""
    return _path(run, manifest).exists()


def completed(run: RunFolder) -> bool:
    """Whether this ledger has assembled a complete result, wherever it is now."""
    return any(manifest.complete for manifest, _ in map(_read, _records(run)))


def placed(run: RunFolder, target: Destination) -> Manifest | None:
    """The recorded manifest whose files are at the target, which has none of its own yet."""
    return next((manifest for manifest, _ in _matches(run, target, None)), None)


def found_aside(run: RunFolder, target: Destination) -> Path | None:
    """A result of this ledger that was moved to a hidden sibling, to be replaced."""
    return next((place for place in target.siblings("old") if _matches(run, target, place)), None)


def assembled(run: RunFolder, target: Destination, state: Mapping[str, Any]) -> tuple[Manifest, Path] | None:
    """A result in a hidden sibling that was assembled from the same state, whole and undamaged."""
    wanted = json.loads(json.dumps(state))
    for place in target.siblings("new"):
        for manifest, theirs in _matches(run, target, place):
            if theirs == wanted:
                return manifest, place
    return None


def known_files(run: RunFolder) -> set[str]:
    """Names of the files of every result that this ledger has assembled."""
    return {file.name for path in _records(run) for file in _read(path)[0].files}


def permit(run: RunFolder, target: Destination) -> None:
    """Record that what is at the target now may be replaced."""
    seen = {"path": target.name, "manifest": target.manifest_digest(), "files": sorted(target.sizes())}
    content = json.dumps(seen).encode()
    write_file(run.tmp, run.publications / "replace.json", lambda file: file.write(content))


def permitted(run: RunFolder, target: Destination, digest: str | None) -> bool:
    """Whether the target, whose manifest has this digest, is what `permit` saw, or what a swap of it has left."""
    seen = _permission(run)
    return seen.get("path") == target.name and digest in (seen["manifest"], None)


def replaced_files(run: RunFolder, target: Destination) -> set[str]:
    """Names of the files that were at the target when `permit` saw it."""
    seen = _permission(run)
    return set(seen["files"]) if seen.get("path") == target.name else set()


def replacing(run: RunFolder, target: Destination, version: str) -> None:
    """Record that the file of this version at the target is about to lose its manifest, and then to be replaced."""
    path = run.publications / "replacing.json"
    path.unlink(missing_ok=True)
    content = json.dumps({"path": target.name, "version": version}).encode()
    write_file(run.tmp, path, lambda file: file.write(content))


def being_replaced(run: RunFolder, target: Destination) -> str | None:
    """The version of the file at the target that lost its manifest to this ledger's replacement, if that was begun."""
    seen = _noted(run, "replacing.json")
    return str(seen["version"]) if seen.get("path") == target.name else None


def withdraw(run: RunFolder) -> None:
    """The replacement is done: forget the permission."""
    for name in _NOTES:
        (run.publications / name).unlink(missing_ok=True)


def _permission(run: RunFolder) -> dict[str, Any]:
    return _noted(run, "replace.json")


def _noted(run: RunFolder, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((run.publications / name).read_bytes()))
    except FileNotFoundError:
        return {}


def _matches(run: RunFolder, target: Destination, place: Path | None) -> list[tuple[Manifest, Any]]:
    """The recorded results, and what they were assembled from, whose files are there; the furthest one first."""
    sizes = target.sizes(place)
    # Sizes first: digests of somebody else's large files are not worth computing.
    alike = [
        (manifest, state)
        for manifest, state in map(_read, _records(run))
        if {file.name: file.bytes for file in manifest.files} == sizes
    ]
    digest = target.digest(place) if alike else None
    found = [(manifest, state) for manifest, state in alike if manifest.digest == digest]
    return sorted(found, key=lambda match: (match[0].complete, match[0].retries), reverse=True)


def _read(path: Path) -> tuple[Manifest, Any]:
    try:
        content = json.loads(path.read_bytes())
        return Manifest.from_bytes(content["manifest"].encode(), str(path)), content["state"]
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{path} is damaged; delete it and run again") from error


def _records(run: RunFolder) -> list[Path]:
    return sorted(path for path in run.publications.glob("*.json") if path.name not in _NOTES)


def _path(run: RunFolder, manifest: Manifest) -> Path:
    # Results of equal bytes differ in what they include: a partial one may happen to lack no answer, and rows that are
    # retried may fail alike.
    included = f".r{manifest.retries:05d}" if manifest.retries else ""
    return run.publications / f"{manifest.digest}{included}{'' if manifest.complete else '.partial'}.json"
