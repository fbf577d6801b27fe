"""What a quantization is calibrated with: the job's rows as the model meets them, or the text of others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.checkpoint import Checkpoint
from data.errors import InputError
from tasks.calibration_rows import LEAST_ROWS, CalibrationRows, calibration_rows
from tasks.configuration import load_settings

ROOT = Path(__file__).parents[2]
MODEL = str(ROOT / "data" / "models" / "messages-4m")
PROMPT = [{"role": "user", "content": "{{ message }}"}]


def drawn(**sections: dict[str, Any]) -> CalibrationRows:
    settings = load_settings(None, {"model": {"path": MODEL}, **sections}, environment={})
    return calibration_rows(settings, Checkpoint.open(MODEL))


def written(path: Path, rows: int, **columns: Any) -> str:
    """JSON lines whose values are the columns' with the row's number in them."""
    lines = (json.dumps({name: f"{value} {row}" for name, value in columns.items()}) + "\n" for row in range(rows))
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


def decoded(rows: CalibrationRows) -> list[str]:
    tokenizer = Checkpoint.open(MODEL).tokenizer()
    return [tokenizer.decode(row.tolist()) for row in rows.ids]


def test_prompts_with_the_right_answers_and_an_end_behind_them(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", 20, message="where is parcel", expected="late")
    job = {"prompt": PROMPT, "expected": "expected"}
    found = drawn(input={"path": source}, job=job, quantize={"rows": 10})
    assert (len(found.ids), found.skipped, found.warnings) == (10, 0, ())
    for ids, text in zip(found.ids, decoded(found), strict=True):
        number = text.rpartition("late ")[2].strip()
        assert f"where is parcel {number}" in text
        assert ids[-1] in Checkpoint.open(MODEL).stop_ids
    without = drawn(input={"path": source}, job={"prompt": PROMPT}, quantize={"rows": 10})
    assert all("late" not in text for text in decoded(without))
    longer = zip(found.ids, without.ids, strict=True)
    assert all(list(whole[: len(prompt)]) == list(prompt) for whole, prompt in longer)


def test_the_same_rows_are_drawn_again_and_long_ones_are_cut(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", 500, message="where is my very late parcel, I have waited for days")
    job: dict[str, Any] = {"input": {"path": source}, "job": {"prompt": PROMPT}}
    first, again = drawn(**job, quantize={"rows": 9}), drawn(**job, quantize={"rows": 9})
    assert first.digest == again.digest
    assert first.digest != drawn(**job, quantize={"rows": 10}).digest
    cut = drawn(**job, quantize={"rows": 9, "max_tokens": 7})
    assert [list(row) for row in cut.ids] == [list(row[:7]) for row in first.ids]


def test_rows_that_cannot_be_asked_are_left_out_and_counted(tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    rows = [{"message": f"parcel {row}" if row % 2 else " "} for row in range(20)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    job = {"prompt": "{{ message }}"}
    found = drawn(input={"path": str(source)}, job=job, quantize={"rows": 50})
    assert (len(found.ids), found.skipped) == (10, 10)
    assert found.warnings == (f"only 10 of 50 rows to calibrate with in {source} (10 more cannot be asked)",)


def test_a_dataset_of_its_own_is_asked_where_it_can_be_and_read_as_text_elsewhere(tmp_path: Path) -> None:
    asked = written(tmp_path / "asked.jsonl", 12, message="hello", text="something else")
    found = drawn(job={"prompt": "Say: {{ message }}"}, quantize={"dataset": asked, "rows": 8})
    assert found.text == "prompts"
    assert all("Say: hello" in text for text in decoded(found))
    text = written(tmp_path / "text.jsonl", 12, text="the parcel came on day")
    for job in ({}, {"prompt": "Say: {{ message }}"}):
        found = drawn(job=job, quantize={"dataset": text, "rows": 8})
        assert found.text == "column text"
        assert all(text.startswith("the parcel came on day ") for text in decoded(found))


def test_a_dataset_that_is_the_input_takes_rows_of_the_input(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", 500, message="hello", text="something else")
    copy, other = str(tmp_path / "copy.jsonl"), written(tmp_path / "other.jsonl", 100, message="hello")
    shutil.copyfile(source, copy)
    job: dict[str, Any] = {"input": {"path": source, "limit": 300}, "job": {"prompt": PROMPT}}
    without = drawn(**job, quantize={"rows": 9})
    for named in (source, copy):
        found = drawn(**job, quantize={"rows": 9, "dataset": named})
        assert (found.digest, found.others) == (without.digest, LEAST_ROWS)
    assert drawn(**job, quantize={"rows": 100, "dataset": other}).others is None


@pytest.mark.parametrize(
    ("rows", "columns", "sections", "words"),
    [
        (0, {}, {}, ["holds no rows"]),
        (7, {"message": "a"}, {}, ["gives 7 rows", "8 at least", "quantize.dataset"]),
        (20, {"note": "a"}, {}, ["reads column 'message'"]),
        (20, {"message": "a"}, {"job": {"prompt": PROMPT, "expected": "label"}}, ["job.expected = 'label'", "message"]),
        (20, {"message": "a"}, {"job": {}}, ["job.kind = 'generate' needs job.prompt"]),
    ],
)
def test_an_input_that_will_not_do_is_named(
    rows: int, columns: dict[str, str], sections: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    source = written(tmp_path / "in.jsonl", rows, **columns)
    with pytest.raises(InputError) as caught:
        drawn(**({"input": {"path": source}, "job": {"prompt": PROMPT}} | sections))
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_dataset_without_text_is_named(tmp_path: Path) -> None:
    source = written(tmp_path / "in.jsonl", 20, note="a")
    with pytest.raises(InputError, match="no column 'text' to calibrate with; it has note: rename one"):
        drawn(quantize={"dataset": source})
    with pytest.raises(InputError, match=r"not the columns that job.prompt reads \(message\)"):
        drawn(job={"prompt": PROMPT}, quantize={"dataset": source})


def test_only_methods_that_calibrate_need_rows() -> None:
    assert drawn(quantize={"method": "fp8"}).ids == ()
    with pytest.raises(InputError, match=r"--input, or others with quantize.dataset"):
        drawn()
