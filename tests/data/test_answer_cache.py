"""The result cache: what is kept and found, kills at every step, two writers at once, the bound on its size."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.answer_cache import AnswerCache
from data.errors import InputError
from data.job_answers import JobAnswers
from data.results import result_schema

WRITER = Path(__file__).with_name("answer_writer.py")
_spec = importlib.util.spec_from_file_location("answer_writer", WRITER)
assert _spec is not None
assert _spec.loader is not None
writer = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(writer)

PLENTY = 1 << 30
ROWS = writer.ROWS


def keep(answers: JobAnswers, shard: int, failed: tuple[int, ...] = ()) -> None:
    answers.add(writer.prompts(shard), [0] * ROWS, writer.results(shard, failed))


def found(answers: JobAnswers, shard: int) -> dict[int, str]:
    rows: dict[int, str] = {}
    for positions, table in answers.find(*writer.wanted(shard)):
        for row, output in zip(positions.tolist(), table["output"].to_pylist(), strict=True):
            assert row not in rows
            rows[row] = output
    return rows


def whole(shard: int) -> dict[int, str]:
    return {row: writer.answer(shard, row) for row in range(ROWS)}


def start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(WRITER), str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_answers_are_found_again_and_errors_are_not_kept(tmp_path: Path) -> None:
    answers = writer.answers_in(tmp_path / "cache", PLENTY)
    keep(answers, 1, failed=(3, 5))
    keep(answers, 2)
    assert found(answers, 1) == {row: text for row, text in whole(1).items() if row not in (3, 5)}
    assert found(answers, 2) == whole(2)
    assert found(answers, 3) == {}
    (_, table), *_ = answers.find(*writer.wanted(2))
    assert table.schema.equals(result_schema("generate").remove(0))


def test_another_job_and_another_occurrence_are_other_answers(tmp_path: Path) -> None:
    answers = writer.answers_in(tmp_path / "cache", PLENTY)
    keys = writer.prompts(1)[:1] * ROWS
    answers.add(keys, list(range(ROWS)), writer.results(1))
    wanted = np.frombuffer(b"".join(keys), "<u8").reshape(-1, 2)
    (positions, table), *_ = answers.find(wanted, np.arange(5, 5 + ROWS, dtype=np.int32))
    assert positions.tolist() == list(range(ROWS - 5))
    assert table["output"].to_pylist() == [writer.answer(1, row) for row in range(5, ROWS)]
    assert not list(writer.answers_in(tmp_path / "cache", PLENTY, job="b" * 32).find(*writer.wanted(1)))


def test_every_kind_of_result_comes_back_as_it_was(tmp_path: Path) -> None:
    schema = pa.schema([*result_schema("embed", 3), *list(result_schema("classify", None, ["a", "b"]))[-1:]])
    row = {"output": "a", "status": "ok", "input_tokens": 2, "embedding": [0.1, -2.5, 3e-8]}
    table = pa.Table.from_pylist(
        [{**row, "slot": slot, "probabilities": {"a": 1 / 3, "b": slot / 7}} for slot in range(ROWS)], schema
    )
    answers = JobAnswers(AnswerCache.create(tmp_path / "cache", PLENTY), "c" * 32, {}, schema)
    answers.add(writer.prompts(1), [0] * ROWS, table)
    ((positions, again),) = answers.find(*writer.wanted(1))
    assert again.equals(table.drop_columns("slot").take(pa.array(positions)))


def test_the_folder_is_private_and_holds_no_prompt(tmp_path: Path) -> None:
    keep(writer.answers_in(tmp_path / "cache", PLENTY), 1)
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").rglob("*") if path.is_dir()}
    assert modes | {(tmp_path / "cache").stat().st_mode & 0o777} == {0o700}
    (segment,) = (tmp_path / "cache" / "answers").iterdir()
    assert segment.stat().st_mode & 0o777 == 0o600
    table = pa.ipc.open_stream(segment.read_bytes()[20 * ROWS :]).read_all()
    assert table.column_names == result_schema("generate").names[1:]


@pytest.mark.parametrize("wrong", ["foreign", "open", "file"])
def test_a_folder_that_is_no_private_cache_is_refused(tmp_path: Path, wrong: str) -> None:
    folder = tmp_path / "cache"
    if wrong == "file":
        folder.touch()
    else:
        folder.mkdir(0o755 if wrong == "open" else 0o700)
        (folder / ("answers" if wrong == "open" else "thesis.tex")).touch()
    with pytest.raises(InputError, match=r"cache\.path"):
        AnswerCache.create(folder, PLENTY)


def test_damaged_answers_are_dropped_never_given(tmp_path: Path) -> None:
    answers = writer.answers_in(tmp_path / "cache", PLENTY)
    keep(answers, 1)
    (segment,) = answers.cache.answers.iterdir()
    content = segment.read_bytes()
    for place in range(0, len(content), 41):
        segment.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        assert found(answers, 1) == {}
    segment.write_bytes(content[: len(content) // 2])
    assert found(answers, 1) == {}
    assert not segment.exists()


def test_the_longest_unused_answers_go_first(tmp_path: Path) -> None:
    answers = writer.answers_in(tmp_path / "cache", PLENTY)
    for shard in range(4):
        keep(answers, shard)
    for segment in answers.cache.segments():
        shard = int(segment.read()[2]["output"][0].as_py().split()[1].split(".")[0])
        os.utime(segment.path, (1000 + shard, 1000 + shard))
    assert found(answers, 0) == whole(0)  # used just now
    bound = sum(segment.size for segment in answers.cache.segments()) - 1
    smaller = writer.answers_in(tmp_path / "cache", bound)
    smaller.cache.evict()
    assert [bool(found(smaller, shard)) for shard in range(4)] == [True, False, True, True]
    assert sum(segment.size for segment in smaller.cache.segments()) <= bound
    keep(writer.answers_in(tmp_path / "cache", 0), 9)
    assert answers.cache.segments() == []


def test_the_newest_answer_counts(tmp_path: Path) -> None:
    """Whoever computes afresh what was answered wrong is believed from then on."""
    answers = writer.answers_in(tmp_path / "cache", PLENTY)
    keep(answers, 1, failed=tuple(range(1, ROWS)))  # another content for the same prompt
    (old,) = answers.cache.segments()
    os.utime(old.path, (1000, 1000))
    answers.add(writer.prompts(1), [0] * ROWS, writer.results(2))
    for _ in range(2):  # being used makes an answer no newer
        assert found(answers, 1) == whole(2)


def test_only_answers_are_deleted(tmp_path: Path) -> None:
    answers = writer.answers_in(tmp_path / "cache", PLENTY)
    keep(answers, 1)
    (tmp_path / "cache" / "tmp" / "mine.txt").write_text("keep")
    answers.cache.clear()
    assert (tmp_path / "cache" / "tmp" / "mine.txt").exists()
    (tmp_path / "project" / "tmp").mkdir(parents=True)
    (tmp_path / "project" / "notes").touch()
    with pytest.raises(InputError, match="is not a cache: it holds notes"):
        AnswerCache(tmp_path / "project", PLENTY).check()


def test_usage_by_job_and_clear(tmp_path: Path) -> None:
    assert AnswerCache(tmp_path / "absent", PLENTY).usage() == []
    answers = writer.answers_in(tmp_path / "cache", PLENTY)
    for shard in range(3):
        keep(answers, shard)
    keep(writer.answers_in(tmp_path / "cache", PLENTY, job="b" * 32), 1)
    first, second = answers.cache.usage()
    assert (first.entries, second.entries) == (3 * ROWS, ROWS)
    assert first.about == {"kind": "generate", "model": "tiny"}
    assert answers.cache.clear() == 4 * ROWS
    assert answers.cache.usage() == []
    assert found(answers, 1) == {}


def test_a_writer_killed_at_any_call_leaves_no_wrong_answer(tmp_path: Path) -> None:
    """Three shards into a bound that holds two, so that evictions are among the calls."""
    answers = writer.answers_in(tmp_path / "measure", PLENTY)
    keep(answers, 0)
    bound = int(answers.cache.segments()[0].size * 2.5)
    (tmp_path / "lab").mkdir()
    child = start(tmp_path / "lab", "kills", 3, bound)
    output, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    points = output.splitlines()
    assert len(points) > 25
    assert points[-1].split() == ["0", "1", "2"]
    for point, line in enumerate(points, 1):
        survivors = writer.answers_in(tmp_path / "lab" / f"{point}", bound)
        got = {shard: found(survivors, shard) for shard in range(3)}
        assert all(rows in ({}, whole(shard)) for shard, rows in got.items())
        # The second goes for the third, since the first is looked up after each.
        assert all(got[int(shard)] for shard in line.split() if shard != "1" or "2" not in line.split())
        keep(survivors, 7)
        assert found(survivors, 7) == whole(7)
        assert sum(segment.size for segment in survivors.cache.segments()) <= bound


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    keep(writer.answers_in(tmp_path / "measure", PLENTY), 0)
    size = AnswerCache(tmp_path / "measure", 0).segments()[0].size
    children = [start(tmp_path / "cache", first, 60, 20 * size) for first in (0, 30, 0)]
    for child in children:
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
    answers = writer.answers_in(tmp_path / "cache", 20 * size)
    got = [found(answers, shard) for shard in range(90)]
    assert all(rows in ({}, whole(shard)) for shard, rows in enumerate(got))
    assert 10 <= sum(map(bool, got)) <= 22
    assert sum(segment.size for segment in answers.cache.segments()) <= 20 * size
    assert list(answers.cache.tmp.iterdir()) == []
