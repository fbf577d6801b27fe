"""Progress is added up from events; the display shows it as lines or as a table."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from tasks.display import Display, progress_line
from tasks.figures import duration, numbers, share, short, size
from tasks.live_display import Terminal
from tasks.milestones import milestone
from tasks.progress import Progress
from tasks.progress_table import progress_table


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def progress(clock: Clock) -> Progress:
    """1,000 rows: 10 errors, 90 folded, 900 sequences, two workers ready."""
    progress = Progress(clock)
    progress.tell({"event": "run_started", "run": "ab12cd34ef", "folder": "/run", "workers": 2, "device": "cpu"})
    progress.tell(planned(rows=1000, sequences=900, errors={"blank_prompt": 10}, folded=90))
    for worker in (0, 1):
        progress.tell({"event": "started", "worker": worker, "pid": 7})
        progress.tell({"event": "ready", "worker": worker, "seconds": 1.0, "device": "cpu"})
    return progress


def planned(rows: int, sequences: int, errors: dict[str, int], folded: int, last: bool = True) -> dict[str, object]:
    counts = {"rows": rows, "sequences": sequences, "errors": errors, "folded": folded}
    return {"event": "planned", "window": 0, "shards": 9, "input_tokens": 5000, "last": last, **counts}


def counted(worker: int, sequences: int) -> dict[str, object]:
    tokens = {"input_tokens": 10 * sequences, "output_tokens": 2 * sequences}
    return {"event": "progress", "worker": worker, "sequences": sequences, **tokens}


def done(worker: int, rows: int, errors: int = 0) -> dict[str, object]:
    tokens = {"input_tokens": 10 * rows, "output_tokens": 2 * rows}
    outcome = {"rows": rows, "ok": rows - errors, "errors": errors}
    return {"event": "done", "worker": worker, "shard": "s", "seconds": 1.0, "attempt": 1, **outcome, **tokens}


def test_rows_are_scaled_from_sequences_and_exact_at_the_end(progress: Progress) -> None:
    assert (progress.rows_total, progress.rows_done, progress.errors) == (1000, 10, 10)
    progress.tell(done(0, 450, errors=9))
    assert progress.rows_done == 10 + 495
    progress.tell(done(1, 450))
    assert (progress.rows_done, progress.ok, progress.errors) == (1000, 980, 19)


def test_work_in_flight_counts_once_and_is_lost_with_its_worker(progress: Progress) -> None:
    progress.tell(counted(0, 200))
    assert progress.rows_done == 10 + 220
    progress.tell(done(0, 100))  # half of it is committed
    assert progress.rows_done == 10 + 220
    progress.tell({"event": "died", "worker": 0, "how": "killed by SIGKILL", "shards": ["s"]})
    assert progress.rows_done == 10 + 110
    progress.tell({"event": "started", "worker": 0, "pid": 8})
    progress.tell(counted(0, 50))
    assert progress.rows_done == 10 + 165


def test_resumed_sequences_are_done(progress: Progress) -> None:
    progress.tell({"event": "resumed", "shards": 3, "rows": 330, "ok": 299, "errors": 1})
    assert progress.rows_done == 10 + 330
    assert progress.resumed_rows == 330


def test_answers_of_earlier_runs_leave_the_forecast_as_it_is(clock: Clock) -> None:
    """A hundred answers to compute take as long beside ten thousand that are known."""
    seconds = []
    for known in (0, 9900):
        clock.now = 100
        progress = Progress(clock)
        progress.tell({"event": "run_started", "run": "r", "folder": "/r", "workers": 1, "device": "cpu"})
        planned = {"event": "planned", "window": 0, "rows": 100 + known, "sequences": 100 + known, "shards": 2}
        tokens = {
            "sequence_tokens": 10 * (100 + known),
            "input_tokens": 10 * (100 + known),
            "token_seconds": [1.0, 1.0],
        }
        progress.tell({**planned, **tokens, "errors": {}, "folded": 0, "last": True})
        if known:
            outcome = {"rows": known, "ok": known, "errors": 0, "input_tokens": 10 * known, "output_tokens": 2 * known}
            progress.tell({"event": "cached", "shards": 1, "sequences": known, **outcome})
        progress.tell({"event": "started", "worker": 0, "pid": 7})
        progress.tell({"event": "ready", "worker": 0, "device": "cpu"})
        for second in range(1, 51):
            clock.now = 100 + second
            progress.tell(counted(0, second))
        seconds.append(progress.eta_seconds)
    assert seconds[0] is not None
    assert seconds[1] == pytest.approx(seconds[0], rel=0.2)


def test_published_counts_are_the_last_word(progress: Progress) -> None:
    progress.tell({"event": "published", "path": "/out", "rows": 1000, "ok": 977, "errors": 23})
    assert (progress.rows_done, progress.ok, progress.errors) == (1000, 977, 23)


def test_rates_and_forecast(progress: Progress, clock: Clock) -> None:
    assert progress.eta_seconds is None
    for second in range(1, 11):
        clock.now = 100 + second
        progress.tell(counted(0, 9 * second))
    assert progress.sequence_rate == pytest.approx(9)
    assert progress.input_rate == pytest.approx(90)
    assert progress.output_rate == pytest.approx(18)
    assert progress.eta_seconds == pytest.approx(810 / 9)


def test_a_stalled_run_has_no_pace_and_no_forecast(progress: Progress, clock: Clock) -> None:
    clock.now += 10
    progress.tell(counted(0, 90))
    clock.now += 1000
    assert progress.output_rate == 0
    assert progress.eta_seconds is None


def test_no_forecast_before_the_last_window(clock: Clock) -> None:
    progress = Progress(clock)
    progress.tell(planned(100, 100, {}, 0, last=False))
    progress.tell({"event": "started", "worker": 0, "pid": 1})
    clock.now += 10
    progress.tell(counted(0, 50))
    clock.now += 10
    progress.tell(counted(0, 60))
    assert not progress.rows_final
    assert progress.eta_seconds is None


def test_loading_does_not_slow_the_pace(clock: Clock) -> None:
    progress = Progress(clock)
    progress.tell({"event": "started", "worker": 0, "pid": 1})
    clock.now += 500
    progress.tell({"event": "ready", "worker": 0, "seconds": 500.0, "device": "cuda"})
    clock.now += 500
    progress.tell(planned(1000, 1000, {}, 0))
    clock.now += 10
    progress.tell(counted(0, 100))
    assert progress.eta_seconds == pytest.approx(90)


def test_what_is_left_is_judged_by_tokens(progress: Progress, clock: Clock) -> None:
    weighed = planned(rows=0, sequences=0, errors={}, folded=0)
    progress.tell({**weighed, "sequence_tokens": 900 * 10 + 4500, "token_seconds": [1.0, 10.0]})
    clock.now += 10
    progress.tell(counted(0, 90))
    # 90 of 900 sequences with 2 tokens out each took 10 s; those left have 15.6 tokens in each instead of 10.
    left, took = (900 * 10 + 4500 - 900) + 10 * 2 * 810, 900 + 10 * 2 * 90
    assert progress.eta_seconds == pytest.approx(10 * left / took)


def test_the_record_knows_when_workers_finished_and_how_long_answers_were(progress: Progress, clock: Clock) -> None:
    clock.now += 5
    progress.tell({**done(0, 3), "lengths": [0, 1, 2]})
    assert progress.record.finish_spread is None
    clock.now += 2
    progress.tell({**done(1, 2), "lengths": [0, 0, 2]})
    assert progress.record.finish_spread == 2.0
    assert progress.record.spans == ((100.0, 105.0), (100.0, 107.0))
    assert (progress.record.lengths, progress.record.tokens) == ((0, 1, 4), 10)


def test_states_of_a_worker(progress: Progress, clock: Clock) -> None:
    states = []

    def look() -> None:
        states.append(progress.workers[1].state)

    look()
    progress.tell(counted(1, 5))
    look()
    progress.tell({"event": "died", "worker": 1, "how": "exit status 1", "shards": []})
    look()
    clock.now += 100
    look()
    progress.tell({"event": "started", "worker": 1, "pid": 9})
    look()
    assert states == ["ready", "running", "restarting", "dead", "starting"]
    assert progress.workers[1].deaths == 1


def test_plain_lines_tell_what_happens_and_never_move_the_cursor(progress: Progress) -> None:
    stream = io.StringIO()
    with Display(progress, Console(file=stream, width=40)):
        progress.tell({"event": "died", "worker": 1, "how": "killed by SIGKILL", "shards": ["a", "b"]})
        progress.tell({"event": "warning", "message": "bad \x1b[2J path\nsecond line"})
        progress.tell(done(0, 10))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert "Worker 1 ended: killed by SIGKILL; 2 shards will be tried again" in lines[0]
    assert lines[1].endswith("Warning: bad ?[2J path second line")
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_the_table_and_keeps_only_the_milestones(progress: Progress) -> None:
    stream = io.StringIO()
    with Display(progress, Console(file=stream, width=80, force_terminal=True)):
        progress.tell({"event": "publishing"})
    assert "assembling the result" in stream.getvalue()


def test_a_reader_that_went_away_does_not_end_the_run(progress: Progress, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    # Closing the stream flushes once more what could not be written.
    with suppress(BrokenPipeError), open(writer, "w", buffering=1) as stream, Display(progress, Terminal(file=stream)):
        for _ in range(3):
            progress.tell({"event": "publishing"})
    assert not failures


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("workers", [1, 16, 17, 64])
def test_the_table_fits_its_width(clock: Clock, width: int, workers: int) -> None:
    progress = Progress(clock)
    progress.tell({"event": "run_started", "run": "0123456789", "folder": "", "workers": workers, "device": "cuda"})
    progress.tell(planned(987_654_321, 987_654_321, {"prompt_too_long": 123_456}, 0, last=False))
    for worker in range(workers):
        progress.tell({"event": "started", "worker": worker, "pid": 1})
        clock.now += 1
        progress.tell(counted(worker, 1_234_567))
    lines = list(rendered(progress, width))
    assert all(len(line) <= width for line in lines)
    assert not any("…" in line for line in lines)
    assert len(lines) == 3 + (workers if workers <= 16 else 1)


def rendered(progress: Progress, width: int) -> Iterator[str]:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(progress_table(progress))
    yield from console.export_text().splitlines()


def test_one_line_for_a_log(progress: Progress, clock: Clock) -> None:
    clock.now += 10
    progress.tell(counted(0, 450))
    line = progress_line(progress)
    assert line == "50.50 %: 505 of 1,000 rows, 450 tok/s in, 90 out, 10 errors, 10 s left"


def test_a_deadline_is_shown_in_lines_and_table_until_the_end(clock: Clock) -> None:
    ends = datetime.now(UTC) + timedelta(seconds=1000)
    progress = Progress(clock)
    start = {"event": "run_started", "run": "ab12", "folder": "/run", "workers": 1, "device": "cpu"}
    progress.tell({**start, "deadline": ends.isoformat()})
    progress.tell(planned(rows=1000, sequences=1000, errors={}, folded=0))
    progress.tell({"event": "ready", "worker": 0, "seconds": 1.0, "device": "cpu"})
    assert re.search(r"deadline in 16 m \d\d s$", progress_line(progress))
    clock.now += 10
    progress.tell(counted(0, 4))  # 0.4 a second: 996 rows take 2490 seconds
    line = progress_line(progress)
    assert (found := re.search(r"about (\d+) rows will have no answer then", line))
    assert 590 < int(found[1]) < 605
    screen = Console(file=io.StringIO(), width=160)
    screen.print(progress_table(progress))
    assert "rows will have no answer then" in screen.file.getvalue()  # type: ignore[attr-defined]
    milestones = [
        milestone({**start, "deadline": ends.isoformat()}),
        milestone({"event": "publishing", "partial": True}),
    ]
    milestones.append(milestone({"event": "deadline", "waiting": 3, "given_up": 1}))
    lines = [found[0] for found in milestones if found is not None]
    assert ", until " in lines[0]
    assert lines[1:] == [
        "Assembling a partial result of what is answered",
        "Out of time: 3 shards not begun, 1 shard given up",
    ]
    progress.tell({"event": "publishing", "partial": True})
    assert progress.outlook is None


def test_figures() -> None:
    assert [short(n) for n in (0, 31.94, 99.96, 940, 999.6, 12_340, 1_200_000, 105_000)] == [
        "0", "31.9", "100", "940", "1.00k", "12.3k", "1.20M", "105k",
    ]  # fmt: skip
    assert [duration(s) for s in (0.84, 59.6, 185, 7800, 273_600)] == ["0.8 s", "1 m 00 s", "3 m 05 s", "2 h 10 m",
                                                                        "3 d 04 h"]  # fmt: skip
    assert [share(0, 5), share(5, 5), share(1, 10**9), share(10**9 - 1, 10**9)] == ["0 %", "100 %", "0.01 %", "99.99 %"]
    assert [size(812), size(9.4 * 2**20), size(139 * 2**30)] == ["812 B", "9.4 MiB", "139 GiB"]
    assert numbers([4012, 7], 4) == "4012, 7 and 2 more"
