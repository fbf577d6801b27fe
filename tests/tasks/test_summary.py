"""The closing report says how it ended, which rows failed, where everything is, and what to do next."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from data.audit import AuditReport
from tasks.summary import RunReport, as_markdown, print_audit, print_summary

LONG = "/data/" + "nested/" * 20 + "reviews"

REPORT = RunReport(
    state="completed",
    run_id="3f2a9c01d2e4f5a6",
    folder="/data/.overnight/3f2a9c01d2e4f5a6",
    output=LONG,
    manifest=f"{LONG}/_manifest.json",
    rows=1000,
    ok=986,
    errors={"prompt_too_long": 2, "blank_prompt": 12},
    error_rows={"blank_prompt": [17, 4012, 5100, 5101, 5102, 5103, 5104, 5105, 5106, 5107], "prompt_too_long": [3, 4]},
    input_tokens=90_000,
    output_tokens=12_000,
    seconds=60.0,
    resumed_rows=0,
    workers=4,
    device="cuda",
    accuracy=0.9132,
    accuracy_label="label",
    resume_command=f"overnight infer --output '{LONG}' --set 'job.choices=[\"a\"]'",
    message=None,
    warnings=("workers.dp_degree = 8 lowered to 4",),
)


def shown(report: RunReport, width: int = 80) -> str:
    stream = io.StringIO()
    print_summary(report, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_paths_and_the_command_are_never_broken(width: int) -> None:
    lines = [line.strip() for line in shown(REPORT, width).splitlines()]
    assert f"Output    {LONG}" in lines
    assert f"Manifest  {LONG}/_manifest.json" in lines
    assert f"{REPORT.resume_command} --retry-errors" in lines


def test_lengths_are_drawn() -> None:
    report = replace(REPORT, prompt_lengths=(0, 0, 3, 12), answer_lengths=(0, 5))
    lines = shown(report, 100).splitlines()
    first = next(number for number, line in enumerate(lines) if "Tokens of a prompt" in line)
    assert "Tokens of an answer" in lines[first]
    assert lines[first + 1].split() == ["2", "█████", "3", "1", "█" * 20, "5"]
    assert lines[first + 2].split() == ["3", "█" * 20, "12"]
    assert "| 3 | 12 | " in as_markdown(report)
    # What generates nothing has no answers to draw.
    assert "Tokens of an answer" not in shown(replace(report, answer_lengths=(7,)))


def test_errors_by_code_with_row_numbers() -> None:
    lines = shown(REPORT, 120).splitlines()
    first = next(number for number, line in enumerate(lines) if "row numbers, from 0" in line)
    assert lines[first + 1].split()[:3] == ["blank_prompt", "12", "17,"]
    assert lines[first + 1].rstrip().endswith("5107 and 2 more")
    assert lines[first + 2].split() == ["prompt_too_long", "2", "3,", "4"]


def test_counts_reconcile_and_rates_are_of_this_run() -> None:
    text = shown(REPORT)
    for expected in ("1,000", "986", "98.60 %", "14", "1.40 %", "91.3 %", "1.50k a second", "200 a second"):
        assert expected in text
    assert "a second" not in shown(replace(REPORT, resumed_rows=10))


def test_a_failed_run_says_why_in_one_line_and_how_to_resume() -> None:
    report = replace(REPORT, state="failed", manifest=None, accuracy=None, message="every worker died\nrepeatedly")
    lines = [line.rstrip() for line in shown(report).splitlines() if line.strip()]
    assert lines[0] == "Run 3f2a9c01d2e4f5a6 failed after 1 m 00 s: every worker died repeatedly"
    assert lines[-2:] == ["No result was published; finished work is kept. To resume:", f"  {report.resume_command}"]
    assert not any(line.startswith(("Output", "Manifest")) for line in lines)


def test_next_steps_by_state() -> None:
    assert "run the same command again" in shown(replace(REPORT, state="partial"))
    clean = shown(replace(REPORT, errors={}, error_rows={}, ok=1000))
    assert "verifies this result and changes nothing" in clean
    assert "--retry-errors" not in clean


def test_markup_and_control_characters_of_paths_are_inert() -> None:
    text = shown(replace(REPORT, output="/data/[red]x[/red]\x1b[2J"))
    assert "/data/[red]x[/red]?[2J" in text


EVIL = "x\x1b[2J\x07\x9by\rz"


@pytest.mark.parametrize(
    "name", ["message", "output", "folder", "manifest", "resume_command", "accuracy_label", "warnings"]
)
@pytest.mark.parametrize("state", ["completed", "failed"])
def test_nothing_that_is_told_can_move_the_cursor(name: str, state: str) -> None:
    value = (EVIL,) if name == "warnings" else EVIL
    report = replace(REPORT, state=state, **{name: value})  # type: ignore[arg-type]
    for text in (shown(report), as_markdown(report)):
        assert [letter for letter in text if not letter.isprintable() and letter != "\n"] == []


@pytest.mark.parametrize(("path", "problems"), [(EVIL, []), (EVIL, ["x"]), ("/out", [f"{EVIL} is damaged"])])
def test_an_audit_cannot_move_the_cursor(path: str, problems: list[str]) -> None:
    stream = io.StringIO()
    print_audit(AuditReport(path, problems), Console(file=stream, width=80))
    assert [letter for letter in stream.getvalue() if not letter.isprintable() and letter != "\n"] == []


def test_code_of_markdown_is_not_ended_by_a_name() -> None:
    assert "- Output: `/data/a b`" in as_markdown(replace(REPORT, output="/data/a`b"))


def test_markdown_holds_the_same_and_cannot_be_broken_by_names() -> None:
    text = as_markdown(replace(REPORT, warnings=("a | b <img src=x>",)))
    assert "| `blank_prompt` | 12 | 17, 4012," in text
    assert f"    {REPORT.resume_command} --retry-errors" in text
    assert "a \\| b \\<img src=x\\>" in text


def test_audit_lists_problems() -> None:
    stream = io.StringIO()
    print_audit(AuditReport("/out", ["part-00000.parquet is damaged"]), Console(file=stream, width=80))
    assert stream.getvalue().splitlines() == ["Not valid, 1 problem: /out", "  part-00000.parquet is damaged"]


def test_audit_of_a_valid_result_gives_the_counts() -> None:
    stream = io.StringIO()
    report = AuditReport("/out", [], "ab12", True, 2, 2, 10, 9, {"blank_prompt": 1})
    print_audit(report, Console(file=stream, width=80))
    assert stream.getvalue().splitlines() == [
        "Valid complete result in /out",
        "run ab12, 2 files, 10 rows: 9 ok, 1 error",
        "  blank_prompt: 1",
    ]


@pytest.mark.parametrize(
    ("counted", "line"),
    [
        (1, "run ab12: 1 of 3 files is as the manifest says and holds 10 rows: 9 ok, 1 error"),
        (0, "run ab12: none of 3 files is as the manifest says, so nothing is counted"),
    ],
)
def test_audit_of_a_damaged_result_tells_no_count_that_is_not_verified(counted: int, line: str) -> None:
    stream = io.StringIO()
    counts = (10, 9, {"blank_prompt": 1}) if counted else (0, 0, {})
    report = AuditReport("/out", ["part-00001.parquet is missing from /out"], "ab12", True, 3, counted, *counts)
    print_audit(report, Console(file=stream, width=100))
    assert stream.getvalue().splitlines()[2] == line


def test_deaths_that_the_run_survived_are_told_with_their_reasons() -> None:
    report = replace(REPORT, deaths={"killed by SIGKILL": 1, "no progress for 300 s": 3})
    told = "of workers: 3 no progress for 300 s, 1 killed by SIGKILL"
    (line,) = [line for line in shown(report, 120).splitlines() if line.startswith("Deaths")]
    assert line.split(maxsplit=2) == ["Deaths", "4", told]
    assert f"| Deaths | 4 | {told} |" in as_markdown(report)
    once = shown(replace(REPORT, deaths={"killed by SIGKILL": 1}), 120)
    assert "of workers: killed by SIGKILL" in once
    assert "Deaths" not in shown(REPORT)
    many = replace(REPORT, deaths={f"exit status {number}": 9 - number for number in range(6)})
    assert "6 exit status 3 and 9 others" in as_markdown(many)
