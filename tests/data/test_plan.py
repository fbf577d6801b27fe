"""Plans: deterministic, folded, complete, resumable, whatever the window size."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import RunError
from data.ledger import Ledger
from data.plan import load_windows, plan_windows
from data.shards import prompts_path, read_prompts
from data.window import load_window, read_table

TEXTS = [{"id": number, "text": f"text {number * 7 % 60}" if number % 11 else ""} for number in range(300)]


def prompts_by_row(lab: Any, windows: list[Any]) -> dict[int, tuple[str, int] | None]:
    """Each row's prompt text and occurrence, by way of its shard and slot."""
    shards = {shard.index: read_prompts(lab.run, shard.id) for window in windows for shard in window.shards}
    found: dict[int, tuple[str, int] | None] = {}
    for window in windows:
        for row in read_table(lab.run, window, ".parquet").to_pylist():
            if row["shard"] < 0:
                assert row["code"]
                found[row["row"]] = None
            else:
                prompts = shards[row["shard"]]
                text = bytes(prompts.ids[row["slot"]].astype("u1")).decode()
                found[row["row"]] = (text, prompts.occurrences[row["slot"]])
                assert row["occurrence"] == prompts.occurrences[row["slot"]]
    return found


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=120), st.integers(1, 60), st.integers(1, 400), st.booleans())
def test_every_row_has_its_prompt_or_an_error(
    tmp_path: Path, new_lab: Callable[..., Any], numbers: list[int], window_rows: int, shard_tokens: int, fold: bool
) -> None:
    root = tmp_path / "lab"
    shutil.rmtree(root, ignore_errors=True)
    rows = [{"id": row, "text": "x" * number} for row, number in enumerate(numbers)]
    lab = new_lab(root, rows)
    lab.options = replace(lab.options, fold=fold, shard_tokens=shard_tokens, window_rows=window_rows)
    windows = lab.windows()
    found = prompts_by_row(lab, windows)
    assert sorted(found) == list(range(len(rows)))
    seen: dict[str, int] = {}
    for row, text in enumerate("x" * number for number in numbers):
        expected = (text, 0 if fold else seen.get(text, 0)) if text else None
        assert found[row] == expected
        seen[text] = seen.get(text, 0) + 1
    sequences = sum(shard.sequences for window in windows for shard in window.shards)
    texts = ["x" * number for number in numbers if number]
    assert sequences == (len(set(texts)) if fold else len(texts))
    assert [window.last for window in windows] == [False] * (len(windows) - 1) + [True]
    assert sum(window.rows for window in windows) == len(rows)
    assert sum(window.folded for window in windows) == len(texts) - sequences
    assert sum(count for window in windows for count in window.errors.values()) == len(rows) - len(texts)
    assert sum(window.input_tokens for window in windows) == sum(map(len, texts))


def test_a_plan_depends_on_input_and_identity_alone(tmp_path: Path, new_lab: Callable[..., Any]) -> None:
    plans = []
    for name in ("a", "b"):
        lab = new_lab(tmp_path / name, TEXTS)
        windows = lab.windows()
        plans.append([window.digests for window in windows])
        ids = [shard.id for window in windows for shard in window.shards]
    assert plans[0] == plans[1]
    lab = new_lab(tmp_path / "c", TEXTS, identity={"sampling": {"seed": 1}})
    assert not set(ids) & {shard.id for window in lab.windows() for shard in window.shards}


def test_sequences_are_longest_first_and_shards_are_numbered_through(lab: Callable[..., Any]) -> None:
    made = lab([{"id": n, "text": "y" * (1 + n * 37 % 211)} for n in range(700)])
    made.options = replace(made.options, window_rows=300, shard_tokens=1000)
    windows = made.windows()
    shards = [shard for window in windows for shard in window.shards]
    assert [shard.index for shard in shards] == list(range(len(shards)))
    for shard in shards:
        lengths = [len(ids) for ids in read_prompts(made.run, shard.id).ids]
        assert lengths == sorted(lengths, reverse=True)
        assert (shard.sequences, shard.input_tokens) == (len(lengths), sum(lengths))
        assert shard.output_tokens_limit == 8 * len(lengths)
    assert sum(shard.rows for shard in windows[0].shards) == 300


def test_windows_are_planned_when_asked_for_and_loaded_afterwards(lab: Callable[..., Any]) -> None:
    made = lab(TEXTS)
    plan = plan_windows(made.run, made.dataset, made.prompter, made.run.id, made.options)
    first = next(plan)
    assert made.prompter.encoded_rows == 50
    assert load_windows(made.run) == [first]
    rest = list(plan)
    assert made.prompter.encoded_rows == 300
    assert made.windows() == [first, *rest]
    assert made.prompter.encoded_rows == 300


def test_a_plan_that_was_interrupted_goes_on(lab: Callable[..., Any]) -> None:
    made = lab(TEXTS)
    whole = made.windows()
    for suffix in (".json", ".keys.parquet"):
        (made.run.plan / f"w00003{suffix}").unlink()
    for number in (4, 5):
        (made.run.plan / f"w{number:05d}.json").unlink()
    (made.run.plan / "w00004.parquet").write_bytes(b"of other settings")
    assert made.windows() == whole


def test_prompt_files_of_unfinished_shards_are_made_again(lab: Callable[..., Any]) -> None:
    made = lab(TEXTS)
    windows = made.windows()
    shards = [shard for window in windows for shard in window.shards]
    content = {shard.id: prompts_path(made.run, shard.id).read_bytes() for shard in shards}
    made.work(shards[:1])
    for shard in shards[:3]:
        prompts_path(made.run, shard.id).unlink(missing_ok=True)
    made.options = replace(made.options, shard_tokens=17)  # of a driver with another idea of a shard
    assert made.windows() == windows
    assert not prompts_path(made.run, shards[0].id).exists()
    assert {s.id: prompts_path(made.run, s.id).read_bytes() for s in shards[1:]} == {
        s.id: content[s.id] for s in shards[1:]
    }
    assert Ledger(made.run).missing(shards) == shards[1:]


def test_prompts_that_no_longer_come_out_the_same_are_refused(lab: Callable[..., Any]) -> None:
    made = lab(TEXTS)
    shard = made.windows()[0].shards[0]
    prompts_path(made.run, shard.id).unlink()
    table = pq.read_table(made.source).to_pydict()
    table["text"] = [text + "!" for text in table["text"]]
    made.source.unlink()
    pq.write_table(__import__("pyarrow").table(table), made.source)
    with pytest.raises(RunError, match="other prompts than planned"):
        made.windows()


def test_damaged_plans_are_named(lab: Callable[..., Any]) -> None:
    made = lab(TEXTS)
    window = made.compute()[0]
    path = made.run.plan / "w00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(RunError, match=r"w00000\.parquet is missing or damaged"):
        read_table(made.run, window, ".parquet")
    path.write_bytes(whole)
    (made.run.plan / "w00001.json").write_text("{}")
    with pytest.raises(RunError, match=r"w00001\.json is damaged"):
        made.windows()


@pytest.mark.parametrize("suffix", [".parquet", ".keys.parquet"])
def test_damaged_tables_are_named_before_anything_is_computed(lab: Callable[..., Any], suffix: str) -> None:
    made = lab(TEXTS)
    made.windows()
    path = made.run.plan / f"w00000{suffix}"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=rf"w00000{suffix} is missing or damaged; start again with --fresh"):
        made.windows()


def test_every_flipped_bit_of_a_plans_record_is_found_and_named(lab: Callable[..., Any]) -> None:
    made = lab(TEXTS[:20])
    made.windows()
    path = made.run.plan / "w00000.json"
    content = path.read_bytes()
    for index in range(len(content)):
        path.write_bytes(content[:index] + bytes([content[index] ^ 1 << index % 7]) + content[index + 1 :])
        if json.loads(content) != _loaded(path):
            with pytest.raises(RunError, match=r"w00000\.json is damaged"):
                load_window(made.run, "w00000")


def _loaded(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except ValueError:
        return None


def test_scored_parts_travel_with_the_prompts(lab: Callable[..., Any]) -> None:
    made = lab(TEXTS[:40])
    made.prompter.scored = True
    shard = made.windows()[0].shards[0]
    assert read_prompts(made.run, shard.id).scored_from == [1] * shard.sequences


def test_json_types_of_all_windows_are_kept(lab: Callable[..., Any]) -> None:
    made = lab(['{"text": "a", "n": 1}'] * 60 + ['{"text": "b", "n": 1.5, "late": true}'] * 30)
    windows = made.windows()
    assert [window.json_types is not None for window in windows] == [True, True]


def test_an_empty_input_is_one_empty_window(lab: Callable[..., Any]) -> None:
    (window,) = lab([]).windows()
    assert (window.rows, window.shards, window.last) == (0, (), True)
