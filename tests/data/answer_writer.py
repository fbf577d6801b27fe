"""A process that writes to a result cache: `answer_writer.py FOLDER FIRST COUNT MAX_BYTES`.

It adds shards FIRST to FIRST + COUNT, printing each number once it is kept, and looks the first of them up. With FIRST
= kills it does so from 0 in FOLDER/1, FOLDER/2 and so on, each in a fork that SIGKILL ends before its first, second and
so on call that changes a file, until one comes through.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from data.answer_cache import AnswerCache
from data.job_answers import JobAnswers
from data.results import result_schema
from data.shards import sequence_key

ROWS = 40


def answers_in(folder: Path, max_bytes: int, job: str = "a" * 32) -> JobAnswers:
    about = {"kind": "generate", "model": "tiny"}
    return JobAnswers(AnswerCache.create(folder, max_bytes), job, about, result_schema("generate"))


def prompts(shard: int, rows: int = ROWS) -> list[bytes]:
    return [sequence_key(np.array([shard, row], "<u4").tobytes()) for row in range(rows)]


def wanted(shard: int) -> Any:
    """Keys and occurrences as `find` takes them."""
    return np.frombuffer(b"".join(prompts(shard)), "<u8").reshape(-1, 2), np.zeros(ROWS, np.int32)


def answer(shard: int, row: int) -> str:
    return f"answer {shard}.{row} " + "x" * row


def results(shard: int, failed: tuple[int, ...] = ()) -> pa.Table:
    rows = [
        {
            "slot": row,
            "output": None if row in failed else answer(shard, row),
            "status": "error" if row in failed else "ok",
            "code": "nan_logits" if row in failed else None,
            "message": "no numbers" if row in failed else None,
            "finish_reason": None if row in failed else "stop",
            "input_tokens": 2,
            "output_tokens": row,
        }
        for row in range(ROWS)
    ]
    return pa.Table.from_pylist(rows, result_schema("generate"))


def die_at(number: int) -> None:
    """End this process without a word before its `number`-th call of these."""
    left = number

    def guarded(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        setattr(os, name, call)

    for name in ("mkdir", "open", "fsync", "link", "unlink", "utime"):
        guarded(name)


def write(folder: Path, first: int, count: int, max_bytes: int) -> None:
    ours = answers_in(folder, max_bytes)
    for shard in range(first, first + count):
        ours.add(prompts(shard), [0] * ROWS, results(shard))
        os.write(1, b"%d " % shard)
        for positions, table in ours.find(*wanted(first)):
            right = [answer(first, row) for row in positions.tolist()]
            assert table["output"].to_pylist() == right


def main() -> None:
    folder, first, count, max_bytes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    if first != "kills":
        write(folder, int(first), count, max_bytes)
        return
    point = ended = 0
    while not point or os.WIFSIGNALED(ended):
        point += 1
        child = os.fork()
        if not child:
            die_at(point)
            write(folder / str(point), 0, count, max_bytes)
            os._exit(0)
        ended = os.waitpid(child, 0)[1]
        os.write(1, b"\n")
    sys.exit(os.waitstatus_to_exitcode(ended))


if __name__ == "__main__":
    main()
