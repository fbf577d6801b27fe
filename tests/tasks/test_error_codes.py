"""There is one register of error codes and exit statuses: nothing makes another one, and everything listed is made."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from data.error_codes import Code
from data.errors import Held, InputError, RunError
from data.exit_status import ExitStatus
from data.rows import BadRow
from engine.request import Completion, Failure
from tasks.configuration import load_settings
from tasks.error_reference import errors_text
from tasks.results import ResultTable

ROOT = Path(__file__).parents[2]


def test_an_unregistered_code_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="'made_up' is not a registered error code"):
        BadRow("made_up", "")  # type: ignore[arg-type]
    assert BadRow("deadline", "").code is Code.DEADLINE  # type: ignore[arg-type]


def test_an_unregistered_code_of_an_engine_is_not_admitted_to_a_result() -> None:
    table = ResultTable(load_settings(None, environment={}), None, None)  # type: ignore[arg-type]
    good = table.build([Completion(0, error=("nan_logits", "x"))], 1)
    assert good["code"].to_pylist() == ["nan_logits"]
    with pytest.raises(ValueError, match="not a registered error code"):
        table.build([Completion(0, error=("made_up", "x"))], 1)  # type: ignore[arg-type]


def test_the_codes_of_engines_are_registered() -> None:
    assert set(get_args(Failure)) <= set(Code)


def test_every_code_is_made_somewhere() -> None:
    sources = [path.read_text(encoding="utf-8") for part in ("data", "tasks") for path in (ROOT / part).glob("*.py")]
    made = {name for text in sources for name in re.findall(r"Code\.([A-Z_0-9]+)", text)}
    assert {code.name for code in Code if code not in get_args(Failure)} <= made


def test_every_code_and_status_has_cause_and_remedy_in_the_document() -> None:
    text = errors_text()
    for code in Code:
        assert f"| `{code}` | {code.cause} | {code.remedy} |" in text
    for status in ExitStatus:
        assert f"| {int(status)} | {status.meaning} | {status.remedy} |" in text
    sentences = [entry for code in Code for entry in (code.cause, code.remedy)]
    sentences += [entry for status in ExitStatus for entry in (status.meaning, status.remedy)]
    assert all(len(sentence) > 10 and sentence.endswith((".", "}.")) for sentence in sentences)
    assert not any(character in sentence for sentence in sentences for character in "|\n")


def test_errors_end_with_their_status() -> None:
    statuses = {InputError("x").status: 2, RunError("x").status: 1, Held("x").status: 4}
    assert {int(status): number for status, number in statuses.items()} == {2: 2, 1: 1, 4: 4}
    assert sorted(ExitStatus) == [0, 1, 2, 3, 4, 130]
