"""Prompt files give back what was written, and no damaged prompt is ever read."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import RunError
from data.run_folder import RunFolder
from data.shards import ShardPrompts, prompts_path, read_prompts, sequence_key, shard_id, write_prompts


def prompts_of(rows: list[list[int]], scored: list[int] | None = None) -> ShardPrompts:
    ids = [np.array(row, np.uint32) for row in rows]
    starts = scored or [0] * len(rows)
    keys = [sequence_key(row.tobytes(), start) for row, start in zip(ids, starts, strict=True)]
    return ShardPrompts(ids, keys, list(range(len(rows))), scored)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 2**32 - 1), max_size=5),
    st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=6), max_size=8),
    st.booleans(),
)
def test_prompts_round_trip(tmp_path: Path, head: list[int], tails: list[list[int]], scored: bool) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    rows = [head + tail for tail in tails]
    prompts = prompts_of(rows, [min(1, len(row)) for row in rows] if scored else None)
    for other in run.prompts.iterdir():
        other.unlink()
    name = write_prompts(run, "run", 3, prompts)
    read = read_prompts(run, name)
    assert [row.tolist() for row in read.ids] == rows
    assert all(row.dtype == np.uint32 for row in read.ids)
    assert (read.keys, read.occurrences, read.scored_from) == (prompts.keys, prompts.occurrences, prompts.scored_from)


def test_a_shared_prefix_is_stored_once(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    head = np.random.default_rng(0).integers(0, 2**32, 20_000).tolist()
    name = write_prompts(run, "run", 0, prompts_of([[*head, number] for number in range(50)]))
    assert prompts_path(run, name).stat().st_size < 1.1 * 4 * len(head)


def test_no_flipped_byte_changes_a_prompt_unnoticed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    rows = [[7, 8, number, number + 1] for number in range(20)]
    name = write_prompts(run, "run", 0, prompts_of(rows))
    path = prompts_path(run, name)
    content = path.read_bytes()
    for position in range(0, len(content), 5):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        with suppress(RunError):
            read = read_prompts(run, name)
            assert [row.tolist() for row in read.ids] == rows
            assert read.occurrences == list(range(20))
    path.write_bytes(content[:-100])
    with pytest.raises(RunError, match=f"{name}.arrow is damaged"):
        read_prompts(run, name)


def test_a_missing_prompt_file_is_named(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    with pytest.raises(RunError, match=r"gone\.arrow is missing"):
        read_prompts(run, "gone")


def test_the_id_follows_from_run_keys_order_occurrences_and_generation() -> None:
    keys, occurrences = b"k" * 16 + b"l" * 16, np.array([0, 0], np.int32)
    base = shard_id("run", 0, keys, occurrences)
    assert base == shard_id("run", 0, keys, occurrences)
    others = {
        shard_id("other", 0, keys, occurrences),
        shard_id("run", 1, keys, occurrences),
        shard_id("run", 0, keys[16:] + keys[:16], occurrences),
        shard_id("run", 0, keys, np.array([0, 1], np.int32)),
    }
    assert len({base, *others}) == 5


def test_the_scored_part_is_part_of_the_key() -> None:
    assert sequence_key(b"abcd", 0) != sequence_key(b"abcd", 1)
