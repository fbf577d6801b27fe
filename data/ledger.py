"""The ledger: one commit record for each finished shard, the only truth about what is done.

A commit names the shard's results by their SHA-256. The results are linked to that address and made durable before
the record is, so a record implies data that a power cut cannot take back. The first record of a shard wins, and late or
repeated attempts (data.attempts) change nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.durable import digest_file, link_file, stage, sync_folder, write_file
from data.errors import RunError
from data.publications import completed
from data.record_check import record_check
from data.results import OK, check_results
from data.run_folder import RunFolder
from data.shards import Shard, prompts_path

CACHE = -1
"""In place of a worker's number: the answers were computed by an earlier run."""


@dataclass(frozen=True, slots=True)
class Commit:
    """The record of a finished shard. `rows` are its sequences, each ok or an error; `seconds` is wall time.

    `tokens`: `input` and `output`, and in `shared` those of the prompts whose KV was there already.
    """

    shard: str
    sha256: str
    rows: int
    ok: int
    errors: int
    tokens: Mapping[str, int]
    seconds: float
    worker: int
    attempt: int

    @property
    def cached(self) -> bool:
        """Whether its answers came from the cache."""
        return self.worker == CACHE

    def to_bytes(self) -> bytes:
        fields = asdict(self)
        return json.dumps({**fields, "check": record_check(fields)}).encode()

    @classmethod
    def read(cls, path: Path) -> Commit:
        """RunError names a record that is damaged or lies under another shard's name."""
        try:
            fields = json.loads(path.read_bytes())
            check = fields.pop("check")
            commit = cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise RunError(f"{path} is damaged; delete it to compute its shard again") from None
        if check != record_check(fields) or commit.shard != path.stem:
            raise RunError(f"{path} is damaged; delete it to compute its shard again")
        return commit


def commit_shard(
    run: RunFolder, shard: Shard, results: pa.Table, *, worker: int, attempt: int, seconds: float, shared: int = 0
) -> Commit:
    """Make the results of a shard durable and commit them; returns the commit that counts, ours or an earlier one.

    `results` and errors are those of `store_results`. The shard's prompts are dropped.
    """
    stored = store_results(run, shard, results, worker=worker, attempt=attempt, seconds=seconds, shared=shared)
    return record_commit(run, stored)


def store_results(
    run: RunFolder, shard: Shard, results: pa.Table, *, worker: int, attempt: int, seconds: float, shared: int = 0
) -> Commit:
    """Make the results of a shard durable under the digest of their bytes; returns what `record_commit` takes.

    `results` has the columns of `results.result_schema`, one row a sequence in any order of slots. They are read back
    from disk and checked before they get their address. RunError: the results are not those of the shard. OSError: not
    stored; the shard may be tried again.
    """
    ordered = results.sort_by("slot").combine_chunks()
    staged = stage(run.tmp, lambda file: pq.write_table(ordered, file, compression="zstd"))
    try:
        read = pq.read_table(staged)
        check_results(read, shard.sequences, f"the result of shard {shard.id}")
        if not read.schema.equals(results.schema):
            raise RunError(f"the result of shard {shard.id} reads back with another schema")
        sha256 = digest_file(staged)
        link_file(staged, results_path(run, sha256), same=True)
    finally:
        staged.unlink(missing_ok=True)
    ok = pc.sum(pc.equal(read["status"], OK)).as_py() or 0
    tokens = {name: pc.sum(read[f"{name}_tokens"]).as_py() or 0 for name in ("input", "output")}
    rows = read.num_rows
    return Commit(
        shard.id, sha256, rows, ok, rows - ok, {**tokens, "shared": shared}, round(seconds, 3), worker, attempt
    )


def record_commit(run: RunFolder, commit: Commit) -> Commit:
    """Commit a shard whose results are stored; returns the commit that counts, this or an earlier one."""
    path = _commit_path(run, commit.shard)
    if not write_file(run.tmp, path, lambda file: file.write(commit.to_bytes())):
        commit = Commit.read(path)
    prompts_path(run, commit.shard).unlink(missing_ok=True)
    return commit


class Ledger:
    """What is committed. Records never change, so each is read once; `refresh` looks for new ones.

    A record counts once its name is durable: the worker that made it may have died before it had seen to that.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._commits: dict[str, Commit] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the records that have appeared. RunError names a damaged one."""
        names = (os.path.splitext(name) for name in os.listdir(self.run.commits))
        new = [name for name, suffix in names if suffix == ".json" and name not in self._commits]
        if new:
            sync_folder(self.run.commits)
        for name in new:
            self._commits[name] = Commit.read(_commit_path(self.run, name))

    def commits(self) -> dict[str, Commit]:
        """Every commit by shard id, those made since the last look included."""
        self.refresh()
        return self._commits

    def committed(self, shard: str) -> bool:
        path = _commit_path(self.run, shard)
        if shard not in self._commits and path.exists():
            sync_folder(self.run.commits)
            self._commits[shard] = Commit.read(path)
        return shard in self._commits

    def missing(self, shards: Iterable[Shard]) -> list[Shard]:
        """The shards that are not committed, in the order given."""
        commits = self.commits()
        return [shard for shard in shards if shard.id not in commits]

    def verify(self) -> None:
        """Read every committed result and compare it with its address. RunError names the first damaged file.

        A result may be missing only once a complete result of this ledger holds it.
        """
        dropped = completed(self.run)
        for commit in self.commits().values():
            if not dropped or results_path(self.run, commit.sha256).exists():
                read_results(self.run, commit)


def read_results(run: RunFolder, commit: Commit) -> pa.Table:
    """The results of a committed shard, from bytes that match their address. RunError names a bad or missing file."""
    path = results_path(run, commit.sha256)
    remedy = f"delete {_commit_path(run, commit.shard)} to compute the shard again"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path} is missing although its shard is committed; {remedy}") from None
    if hashlib.sha256(content).hexdigest() != commit.sha256:
        raise RunError(f"{path} is damaged: its bytes do not match its name; delete it, and {remedy}")
    table = pq.read_table(pa.BufferReader(content))
    check_results(table, commit.rows, str(path))
    return table


def results_path(run: RunFolder, sha256: str) -> Path:
    return run.shards / f"{sha256}.parquet"


def _commit_path(run: RunFolder, shard: str) -> Path:
    return run.commits / f"{shard}.json"
