"""Priorities decide which shard comes first and who shares it, never an answer or the order of the result."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import InputError
from data.folding import MAX_BANDS, bands
from data.plan import plan_windows
from data.priority import Priority
from data.rows import BadRow
from data.window import Window, read_table


def rows_of_shards(lab: Any, windows: Sequence[Window]) -> list[list[int]]:
    """The rows that each shard answers, in the order in which shards are handed out."""
    found: dict[int, list[int]] = {shard.index: [] for window in windows for shard in window.shards}
    for window in windows:
        for row in read_table(lab.run, window, ".parquet").to_pylist():
            if row["shard"] >= 0:
                found[row["shard"]].append(row["row"])
    assert list(found) == sorted(found)
    return list(found.values())


def test_shards_come_by_falling_priority_and_hold_one_each(lab: Callable[..., Any]) -> None:
    rows = [{"id": (number * 7) % 5 if number % 11 else None, "text": f"text {number}"} for number in range(400)]
    made = lab(rows)
    made.options = replace(made.options, window_rows=1000, priority=Priority("id"))
    windows = made.windows()
    shards = rows_of_shards(made, windows)
    classes = [{rows[row]["id"] for row in shard} for shard in shards]
    assert all(len(found) == 1 for found in classes)
    order = [found.pop() for found in classes]
    assert list(dict.fromkeys(order)) == [4, 3, 2, 1, 0, None]
    assert made.options.priority.missing == 37
    assert windows[0].priority == "id"
    assert sum(map(len, shards)) == 400


def test_a_prompt_that_rows_share_has_the_highest_of_their_priorities(lab: Callable[..., Any]) -> None:
    rows = [{"id": number, "text": f"text {number % 40}"} for number in range(80)]
    made = lab(rows)
    made.options = replace(made.options, window_rows=1000, priority=Priority("id in (3, 77)"))
    first, *others = rows_of_shards(made, made.windows())
    assert first == [3, 37, 43, 77]
    assert sorted(row for shard in others for row in shard) == [n for n in range(80) if n % 40 not in (3, 37)]


def test_many_values_are_bands_of_about_equal_numbers() -> None:
    values = np.random.default_rng(0).permutation(10_000).astype(float)
    found = bands(values)
    assert len(found) == MAX_BANDS
    assert {len(band) for band in found} == {625}
    assert all(values[high].min() > values[low].max() for high, low in pairwise(found))


@given(st.lists(st.sampled_from([-math.inf, -1.5, 0.0, 2, 3, *map(float, range(10, 60)), math.inf]), max_size=200))
def test_bands_hold_every_sequence_once_and_part_no_equals(values: list[float]) -> None:
    found = bands(np.array(values))
    assert sorted(np.concatenate([np.empty(0, int), *found]).tolist()) == list(range(len(values)))
    assert len(found) <= MAX_BANDS
    assert all(len(band) for band in found)
    assert all(
        min(values[place] for place in high) > max(values[place] for place in low) for high, low in pairwise(found)
    )
    if 0 < len(set(values)) <= MAX_BANDS:
        assert [{values[place] for place in band} for band in found] == [{v} for v in sorted(set(values), reverse=True)]


RULES = [None, "id", "-id", "id % 2", "id > 5", "text | length", "1 / (id - 3)", "'none' if id % 4 else id"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15, deadline=None)
@given(
    numbers=st.lists(st.integers(0, 9), max_size=90),
    window_rows=st.integers(10, 100),
    shard_tokens=st.integers(1, 400),
    fold=st.booleans(),
    lines=st.booleans(),
    rules=st.tuples(*[st.sampled_from(RULES)] * 2),
    planned=st.integers(0, 5),
    finished=st.integers(0, 6),
    pick=st.randoms(use_true_random=False),
)
def test_whatever_the_plan_does_the_rows_are_the_inputs_with_the_right_answers(
    tmp_path: Path,
    new_lab: Callable[..., Any],
    numbers: list[int],
    window_rows: int,
    shard_tokens: int,
    fold: bool,
    lines: bool,
    rules: tuple[str | None, str | None],
    planned: int,
    finished: int,
    pick: Any,
) -> None:
    """A few shards of the first windows in any order, then the deadline, then the rest with another priority."""
    root = tmp_path / "lab"
    shutil.rmtree(root, ignore_errors=True)
    rows = [{"id": row, "text": "x" * number} for row, number in enumerate(numbers)]
    lab = new_lab(root, [json.dumps(row) for row in rows] if lines and rows else rows)
    lab.output = lab.output.model_copy(update={"error_budget": 1.0})
    first, second = (None if rule is None else Priority(rule) for rule in rules)
    lab.options = replace(
        lab.options, fold=fold, shard_tokens=shard_tokens, window_rows=window_rows, priority=first
    )  # fmt: skip
    plan = plan_windows(lab.run, lab.dataset, lab.prompter, lab.run.id, lab.options)
    windows = list(islice(plan, planned))
    begun = [shard for window in windows for shard in window.shards]
    pick.shuffle(begun)
    lab.work(begun[:finished])
    manifest = lab.publish(partial=True)
    assert not manifest.complete
    check(rows, lab.rows(), fold, late=True)
    answered = {row["id"] for row in lab.rows() if row["status"] == "ok"}
    assert manifest.ok == len(answered)
    lab.options = replace(lab.options, priority=second)
    again = lab.windows()
    assert again[: len(windows)] == windows, "what is planned stays"
    shards = [shard for window in again for shard in window.shards]
    lab.work(shards)
    assert lab.publish().complete
    check(rows, lab.rows(), fold, late=False)
    assert len(lab.computed) == len(set(lab.computed)) == len(shards)


def check(rows: list[dict[str, Any]], published: list[dict[str, Any]], fold: bool, late: bool) -> None:
    seen: dict[str, int] = {}
    assert [row["id"] for row in published] == [row["id"] for row in rows]
    for row, result in zip(rows, published, strict=True):
        text = row["text"]
        occurrence = 0 if fold else seen.get(text, 0)
        seen[text] = seen.get(text, 0) + 1
        if result["status"] == "ok":
            assert result["output"] == f"{text.upper()}#{occurrence}"
        else:
            assert result["output"] is None
            # Of a row that is not planned yet nobody knows that it has no prompt.
            assert result["error"]["code"] in ({"deadline"} if text else {"blank_prompt", "deadline"})
            assert late or result["error"]["code"] == "blank_prompt"


def test_a_row_without_a_number_comes_last() -> None:
    priority = Priority("2 * urgent + (tier == 'gold')")
    assert priority.columns == ("tier", "urgent")
    records: list[Any] = [
        {"urgent": 3, "tier": "gold"},
        {"urgent": 0.25, "tier": None},
        {"urgent": None, "tier": "gold"},
        {"urgent": "high", "tier": "gold"},
        {"tier": "gold"},
        BadRow("invalid_json", "not JSON"),
        {"urgent": True, "tier": ""},
    ]
    none = -math.inf
    assert priority.of(records).tolist() == [7, 0.5, none, none, none, none, 2]
    assert priority.missing == 3
    assert Priority("urgent").of([{"urgent": math.nan}, {"urgent": False}, {"urgent": "7"}]).tolist() == [none, 0, 7]
    assert Priority('row["how urgent"]').of([{"how urgent": 5}]).tolist() == [5]


@pytest.mark.parametrize("text", ["", "{{ id }}", "id +", "5", "id }}{{ id", "lookup(id"])
def test_what_is_no_expression_over_columns_is_an_error(text: str) -> None:
    with pytest.raises(InputError, match=r"schedule\.priority"):
        Priority(text)


def test_a_column_that_is_not_there_or_holds_no_numbers_is_an_error() -> None:
    schema = pa.schema([("id", pa.int64()), ("day", pa.date32())])
    Priority("id").check(schema.names, schema)
    Priority("day | string | length").check(schema.names, schema)
    with pytest.raises(InputError, match=r"schedule\.priority reads column 'idd'.* id, day"):
        Priority("idd").check(schema.names, schema)
    with pytest.raises(InputError, match=r"schedule\.priority: column 'day' is date32"):
        Priority("day").check(schema.names, schema)
