"""A shard, the unit of work and of commit, and the file that carries its prompts to a worker.

A shard is an ordered set of sequences, each an answer to be computed once. Its id is a digest of the run, the
sequences' keys and their order, so the same shard has the same id whoever plans it. The prompt file stores the tokens
that all of its sequences begin with once. Reading checks every sequence against its key and all of them against the
shard's id: Arrow files have no checksums, and a prompt with a flipped bit would be answered without complaint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data.durable import write_file
from data.errors import RunError
from data.run_folder import RunFolder

TokenIds: TypeAlias = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Shard:
    """A planned shard. `index` counts through all windows of a run; slots are its sequences' positions, 0 first."""

    id: str
    window: int
    index: int
    sequences: int
    rows: int
    """Rows of its own window that its sequences answer; rows of later windows may be folded onto them too."""
    input_tokens: int
    output_tokens_limit: int
    cost: float
    shared_tokens: int = 0
    """Input tokens that another sequence of the shard begins with too, and that are computed once."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Shard:
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class ShardPrompts:
    """The sequences of a shard by slot: token ids (uint32), 16 byte keys, occurrences, and where scoring starts."""

    ids: list[TokenIds]
    keys: list[bytes]
    occurrences: list[int]
    scored_from: list[int] | None

    def __len__(self) -> int:
        return len(self.ids)


def sequence_key(ids: bytes | memoryview, scored_from: int = 0) -> bytes:
    """What makes two sequences equal: the digest of the ids (little-endian uint32), salted with the scored part."""
    return hashlib.blake2b(ids, digest_size=16, salt=scored_from.to_bytes(8, "little")).digest()


def shard_id(run: str, generation: int, keys: bytes, occurrences: npt.NDArray[np.int32]) -> str:
    """32 hexadecimal digits. `generation` is 0 for a plan and counts the times that error rows were retried."""
    digest = hashlib.sha256(f"{run}/{generation}/{len(occurrences)}/".encode())
    digest.update(keys)
    digest.update(occurrences.astype("<i4").tobytes())
    return digest.hexdigest()[:32]


def prompts_path(run: RunFolder, identifier: str) -> Path:
    return run.prompts / f"{identifier}.arrow"


def write_prompts(run: RunFolder, identity: str, generation: int, prompts: ShardPrompts) -> str:
    """Write the prompt file of a shard, unless it is there; returns the shard's id (`shard_id`)."""
    identifier = shard_id(identity, generation, b"".join(prompts.keys), np.array(prompts.occurrences, np.int32))
    prefix = _common_prefix(prompts.ids)
    tails = [ids[len(prefix) :] for ids in prompts.ids]
    offsets = np.zeros(len(tails) + 1, np.int32)
    np.cumsum([len(tail) for tail in tails], out=offsets[1:])
    flat = np.concatenate(tails) if tails else np.empty(0, np.uint32)
    columns = {
        "ids": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, pa.uint32())),
        "key": pa.array(prompts.keys, pa.binary(16)),
        "occurrence": pa.array(prompts.occurrences, pa.int32()),
    }
    if prompts.scored_from is not None:
        columns["scored_from"] = pa.array(prompts.scored_from, pa.int32())
    metadata = {"identity": identity, "generation": str(generation), "prefix": prefix.astype("<u4").tobytes()}
    table = pa.table(columns).replace_schema_metadata(metadata)

    def write(file: Any) -> None:
        # The stream format: the file format would store the schema, and with it the prefix, twice.
        with pa.ipc.new_stream(file, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)

    write_file(run.tmp, prompts_path(run, identifier), write)
    return identifier


def read_prompts(run: RunFolder, identifier: str) -> ShardPrompts:
    """The prompts of a shard, checked against its id. RunError names a missing or damaged file."""
    path = prompts_path(run, identifier)
    try:
        with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all().combine_chunks()
        # Damaged offsets would otherwise be followed anywhere.
        table.validate(full=True)
        prompts = _prompts_of(table)
        identity, generation = (table.schema.metadata[name].decode() for name in (b"identity", b"generation"))
        occurrences = np.array(prompts.occurrences, np.int32)
        sound = shard_id(identity, int(generation), b"".join(prompts.keys), occurrences) == identifier
    except FileNotFoundError:
        raise RunError(f"{path} is missing: the shard was committed meanwhile, or the run was set aside") from None
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        raise RunError(f"{path} is damaged ({type(error).__name__}); delete it and run again") from error
    starts = prompts.scored_from or [0] * len(prompts)
    for key, sequence, start in zip(prompts.keys, prompts.ids, starts, strict=True):
        sound = sound and key == sequence_key(sequence.astype("<u4", copy=False).tobytes(), start)
    if not sound:
        raise RunError(f"{path} is damaged: its prompts are not those of the shard; delete it and run again")
    return prompts


def _prompts_of(table: pa.Table) -> ShardPrompts:
    prefix = np.frombuffer(table.schema.metadata[b"prefix"], "<u4").astype(np.uint32)
    ids = [np.concatenate([prefix, tail]) for tail in _slices(table["ids"])]
    scored = table["scored_from"].to_pylist() if "scored_from" in table.column_names else None
    return ShardPrompts(ids, table["key"].to_pylist(), table["occurrence"].to_pylist(), scored)


def _slices(column: pa.ChunkedArray) -> list[TokenIds]:
    if not len(column):
        return []
    lists = column.chunk(0)
    values = lists.values.to_numpy()
    offsets = lists.offsets.to_numpy()
    return [values[start:stop] for start, stop in pairwise(offsets)]


def _common_prefix(sequences: Sequence[TokenIds]) -> TokenIds:
    if not sequences:
        return np.empty(0, np.uint32)
    # What the first and the last in lexicographic order share, all between them share; bytes compare fastest.
    texts = [sequence.astype(">u4").tobytes() for sequence in sequences]
    low, high = min(texts), max(texts)
    shared = min(len(low), len(high))
    differs = np.frombuffer(low[:shared], np.uint32) != np.frombuffer(high[:shared], np.uint32)
    return sequences[0][: int(differs.argmax()) if differs.any() else shared // 4]
