"""The recommendation: the fastest precision that loses no more than the limit, and none where speed does not tell."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.quantizer_report import REPORT_NAME
from tasks.choice import Choice, Precision, Repeat, Trial, choose, loss_of_accuracy, loss_of_answers, rows_to_settle
from tasks.choice_job import ChoiceOptions, prepared_choice
from tasks.configuration import load_settings
from tasks.evaluation import Estimate
from tasks.evaluation_figures import share_of
from tasks.measured import Flags

ROWS = 1000
MODEL = Path(__file__).parents[2] / "data" / "models" / "messages-4m"


def measured(precision: Precision, *rates: float, changed: int | None = None, **others: Any) -> Trial:
    """A precision with these rows a second, and so many answers of ROWS that differ from those of none."""
    repeats = tuple(Repeat(seconds=ROWS / rate, rows=ROWS, output_tokens=10 * ROWS) for rate in rates)
    same = None if changed is None else share_of(ROWS - changed, ROWS)
    loss = None if same is None else loss_of_answers(same)
    return Trial(precision=precision, set={}, repeats=repeats, same=same, **{"loss": loss, **others})


def chosen(*others: Trial, none: tuple[float, ...] = (10, 10.2, 9.9), rows: int = ROWS) -> Choice:
    return choose([measured("none", *none), *others], 0.02, rows, "cuda")


def test_the_fastest_within_the_limit_is_taken() -> None:
    choice = chosen(measured("fp8", 14, 14.2, 14.1, changed=3), measured("int4", 18, 18.1, 18.2, changed=9))
    assert choice.chosen == "int4"
    assert "1.81 times as many rows a second as none; 0.90 % of the answers change" in choice.reason
    choice = chosen(measured("fp8", 14, 14.2, 14.1, changed=3), measured("int4", 18, 18.1, 18.2, changed=60))
    assert choice.chosen == "fp8"
    assert "int4 is left out: it loses 6.00 %, more than the limit of 2.00 %" in choice.notes


def test_speed_that_is_within_the_noise_decides_nothing() -> None:
    for fp8 in ((10.3, 10.1, 10.2), (9.8, 13, 13), (10.6, 10.7, 10.6)):
        choice = chosen(measured("fp8", *fp8, changed=0))
        assert choice.chosen == "none"
        assert any("fp8 is not faster than none beyond the noise" in note for note in choice.notes)
    choice = chosen(measured("fp8", 14, 14.9, 14, changed=1), measured("int4", 14.5, 15, 14.8, changed=8))
    assert choice.chosen == "fp8", "the one that loses less"
    assert chosen(measured("fp8", 14, 14.9, 14, changed=8), measured("int4", 14.5, 15, 14, changed=1)).chosen == "int4"


def test_on_a_slow_device_none_is_what_is_left() -> None:
    choice = choose(
        [measured("none", 10, 10), measured("fp8", 8, 8.1, changed=0), measured("int4", 7, 7.1, changed=0)],
        0.02,
        ROWS,
        "cpu",
    )
    assert choice.chosen == "none"
    assert [note for note in choice.notes if "slower than none" in note] == [
        "fp8 is slower than none: 8 rows a second against 10",
        "int4 is slower than none: 7 rows a second against 10",
    ]


def test_what_fails_is_left_out() -> None:
    failed = measured("int4", failure="group_size = 128 does not divide")
    choice = chosen(measured("fp8", 20, 20, 20, changed=0, errors=1, lost=1), failed)
    assert choice.chosen == "none"
    assert "fp8 is left out: it fails at 1 row that none answers" in choice.notes
    assert "int4 is left out: it could not be measured: group_size = 128 does not divide" in choice.notes


def test_it_says_what_more_rows_would_tell() -> None:
    (doubt,) = [note for note in chosen(measured("fp8", 14, 14, 14, changed=15)).notes if "may lose more" in note]
    assert "the interval on 1,000 rows is 0.91 % to 2.46 %" in doubt
    (hope,) = [note for note in chosen(measured("fp8", 14, 14, 14, changed=25)).notes if "may lose less" in note]
    assert "rows would tell" in hope
    assert not [note for note in chosen(measured("fp8", 14, 14, 14, changed=2)).notes if "may lose" in note]
    choice = chosen(measured("fp8", 14, 14, 14, changed=0), rows=100)
    (few,) = [note for note in choice.notes if "too few" in note]
    needed = int(few.split(": ")[1].split()[0])
    found = share_of(0, needed)
    assert found is not None
    assert found.high == pytest.approx(0.02, rel=0.02)


def test_a_short_run_says_from_how_many_rows_on_speed_is_that_of_a_long_one() -> None:
    (note,) = [note for note in chosen(measured("fp8", 100, 100, 100, changed=0)).notes if "shortest repeat" in note]
    assert "10 s" in note
    assert "about 3,000 rows" in note
    assert not [note for note in chosen(measured("fp8", 30, 30, 30, changed=0)).notes if "shortest repeat" in note]


def test_where_none_is_right_nowhere_the_answers_decide() -> None:
    nothing = share_of(0, ROWS)
    original = measured("none", 10, 10, accuracy=nothing)
    choice = choose([original, measured("fp8", 20, 20, changed=1, accuracy=nothing)], 0.02, ROWS, "cuda")
    assert (choice.chosen, choice.by) == ("fp8", "answers")
    assert "0.10 % of the answers change" in choice.reason


def test_rows_that_a_given_checkpoint_was_calibrated_with_are_left_out(tmp_path: Path) -> None:
    given = tmp_path / "int4"
    shutil.copytree(MODEL, given)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"parcel {row}"}) + "\n" for row in range(90)))
    sections: dict[str, Any] = {
        "input": {"path": str(rows)},
        "job": {"prompt": "{{ text }}"},
        "model": {"path": str(MODEL)},
        "quantize": {"rows": 20},
    }
    settings = load_settings(None, sections, environment={})
    options = ChoiceOptions(tmp_path / "choice.json", str(given), rows=10, repeats=1)
    with prepared_choice(settings, options, datetime.now()) as job:
        assert job.calibrated == 20, "it does not tell"
        report = {"calibration": {"rows": 55, "skipped": 5}}
        (given / REPORT_NAME).write_text(json.dumps(report))
        assert job.calibrated == 60


@pytest.mark.parametrize(("lost", "won"), [(20, 8), (40, 10), (30, 29)])
def test_the_rows_that_settle_it_do(lost: int, won: int) -> None:
    """Rows like these, as many times as it takes."""
    right, was_right = answered(lost, won)
    loss = loss_of_accuracy(right, was_right)
    assert loss is not None
    rows = rows_to_settle(loss, 0.02, ROWS)
    assert rows is not None
    times = -(-rows // ROWS)
    found = loss_of_accuracy(np.tile(right, times), np.tile(was_right, times))
    assert found is not None
    end = found.high if found.value < 0.02 else found.low
    assert (end < 0.021) == (found.value < 0.02)


def test_no_number_of_rows_settles_what_is_at_the_limit() -> None:
    assert rows_to_settle(Estimate(value=0.02, low=0, high=1), 0.02, 10) is None
    assert rows_to_settle(Estimate(value=0.0, low=0, high=0.01), 0.02, 10) == 10


def test_the_loss_of_accuracy_is_paired_by_row() -> None:
    loss = loss_of_accuracy(*answered(lost=20, won=10))
    assert loss is not None
    assert loss.value == pytest.approx(10 / 800)
    assert 0 <= loss.low < loss.value < loss.high < 0.03, "narrower than those of the lost and the won by themselves"
    none = loss_of_accuracy(*answered(lost=0, won=0))
    assert none is not None
    assert (none.low, none.value, none.high) == (0, 0, 0)
    assert loss_of_accuracy(np.ones(100, np.bool_), np.zeros(100, np.bool_)) is None


def answered(lost: int, won: int) -> tuple[Flags, Flags]:
    """ROWS rows of which 800 were right, and whether they are now."""
    was_right = np.arange(ROWS) < 800
    right = was_right.copy()
    right[:lost] = False
    right[ROWS - won :] = True
    return right, was_right
