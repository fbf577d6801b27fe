"""Claims on devices: one at a time, the more urgent first, none passed by, and the dead hold nothing."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.claim_file import ClaimFile, claims_folder
from data.claims import Claim, entitled, obstacles

GPU = frozenset({"gpu"})

HOLD = """
import subprocess, sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
from data.claim_file import ClaimFile
claim = ClaimFile(Path({folder!r}), "other", {urgency}, frozenset({{"gpu"}}), False)
found = claim.look()
print(len(found), flush=True)
words = [sys.executable, "-c", "import time; time.sleep(20)"]
print(subprocess.Popen(words, close_fds=False, stdout=subprocess.DEVNULL).pid, flush=True)
time.sleep(60)
"""


def driver(folder: Path, urgency: int) -> tuple[subprocess.Popen[str], int]:
    """Another process with a claim, and how many it has to wait for. A program that it starts outlives it."""
    program = HOLD.format(root=str(Path(__file__).parents[2]), folder=str(folder), urgency=urgency)
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def claim_in(folder: Path, urgency: int = 0, devices: frozenset[str] = GPU, shares: bool = False) -> ClaimFile:
    return ClaimFile(folder, f"run{urgency}", urgency, devices, shares)


@pytest.fixture
def claims() -> Iterator[list[ClaimFile]]:
    made: list[ClaimFile] = []
    yield made
    for claim in made:
        claim.withdraw()


def test_a_claim_whose_file_cannot_be_removed_holds_nobody_up(tmp_path: Path, claims: list[ClaimFile]) -> None:
    mine, other = claim_in(tmp_path), claim_in(tmp_path)
    claims += [mine, other]
    assert mine.look() == []
    (file,) = tmp_path.glob("*.holds")
    file.unlink()
    file.mkdir()
    mine.withdraw()
    file.rmdir()
    assert other.look() == []


def test_a_holder_that_is_killed_holds_nothing_whatever_it_has_started(tmp_path: Path) -> None:
    child, waits = driver(tmp_path, urgency=9)
    assert waits == 0
    assert child.stdout is not None
    started = psutil.Process(int(child.stdout.readline()))
    mine = claim_in(tmp_path)
    found = mine.look()
    assert found is not None
    assert [(claim.run, claim.process, claim.holds) for claim in found] == [("other", child.pid, True)]
    child.kill()
    child.wait()
    assert len(list(tmp_path.glob("*.holds"))) == 1, "its file is still there, and means nothing"
    assert mine.look() == []
    assert mine.holds
    assert started.is_running()
    mine.withdraw()
    assert [path.name for path in tmp_path.iterdir()] == ["gate"]


def test_a_more_urgent_one_that_waits_and_is_killed_is_given_way_to_no_longer(tmp_path: Path) -> None:
    mine = claim_in(tmp_path)
    assert mine.look() == []
    child, waits = driver(tmp_path, urgency=1)
    assert waits == 1
    assert child.stdout is not None
    assert child.stdout.readline(), "a program that is being started still shares the lock until it runs"
    found = mine.look()
    assert found is not None
    assert [claim.urgency for claim in found] == [1]
    child.kill()
    child.wait()
    deadline = time.monotonic() + 10  # the kernel may let go of a killed process's lock a moment after its end
    while mine.look() != [] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert mine.look() == []
    mine.withdraw()


def test_the_devices_are_taken_over_at_the_border_and_given_back(tmp_path: Path, claims: list[ClaimFile]) -> None:
    first, urgent, late = claims[:] = [claim_in(tmp_path), claim_in(tmp_path, 5), claim_in(tmp_path)]
    assert first.look() == []
    assert urgent.look()
    assert late.look()
    assert first.look()
    assert urgent.look(), "its shards in flight are not finished"
    assert first.leave()
    assert urgent.look() == []
    assert first.look()
    urgent.withdraw()
    assert late.look(), "the one that was sent away is before it"
    assert first.look() == []
    first.withdraw()
    assert late.look() == []


def test_runs_share_devices_if_both_want_to_and_neither_is_more_urgent(tmp_path: Path, claims: list[ClaimFile]) -> None:
    one, two = claim_in(tmp_path, shares=True), claim_in(tmp_path, shares=True)
    alone, urgent = claim_in(tmp_path), claim_in(tmp_path, 1, shares=True)
    claims += [one, two, alone, urgent]
    assert one.look() == two.look() == []
    assert len(alone.look() or ()) == 2
    assert urgent.look()
    assert one.look()
    assert two.look()


def test_a_process_that_was_stopped_at_the_gate_holds_nobody_up(tmp_path: Path) -> None:
    mine = claim_in(tmp_path)
    assert mine.look() == []
    with (tmp_path / "gate").open("rb") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        started = time.monotonic()
        assert mine.look() is None
        assert not mine.leave()
        assert time.monotonic() - started < 2
        assert mine.holds
    assert mine.leave()
    mine.withdraw()


def test_a_claim_is_made_again_when_the_folder_was_emptied(tmp_path: Path) -> None:
    folder = tmp_path / "claims"
    mine, other = claim_in(folder), claim_in(folder)
    assert mine.look() == []
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    assert mine.look() == []
    assert other.look()
    mine.withdraw()
    other.withdraw()


def test_the_folder_is_the_users_and_of_this_boot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert claims_folder() == claims_folder()
    assert claims_folder().parent == tmp_path / "overnight" / "claims"


@pytest.mark.parametrize("deaths", [0, 1])
def test_many_drivers_at_once_take_turns(tmp_path: Path, deaths: int) -> None:
    """Eight processes, started at the same moment, of two urgencies; of half of them, each dies with the devices."""
    words = [sys.executable, str(Path(__file__).parent / "claiming.py"), str(tmp_path / "claims"), str(tmp_path / "m")]
    drivers = [
        subprocess.Popen(
            [*words, str(number % 2), "8", str(deaths if number < 4 else 0)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(8)
    ]  # fmt: skip
    for child in drivers:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in drivers:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    try:
        ends = [child.communicate(timeout=120) for child in drivers]
    finally:
        for child in drivers:
            child.kill()
    expected = [-signal.SIGKILL] * 4 * deaths + [0] * (8 - 4 * deaths)
    assert [child.returncode for child in drivers] == expected, [words for _, words in ends]
    assert not list((tmp_path / "claims").glob("*.holds"))


def claims_of(draws: list[tuple[int, frozenset[str], bool]]) -> list[Claim]:
    return [
        Claim("r", os.getpid(), urgency, devices, shares, ticket, False)
        for ticket, (urgency, devices, shares) in enumerate(draws, 1)
    ]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.frozensets(st.sampled_from("abc"), min_size=1), st.booleans()),
        min_size=1,
        max_size=7,
    ),
    st.randoms(use_true_random=False),
)
def test_everybody_gets_a_turn_and_no_two_at_once(
    draws: list[tuple[int, frozenset[str], bool]], random: st.DataObject
) -> None:
    """Drivers come, look in any order, leave when told to, and end: whatever happens, the last of them is done."""
    coming, here = claims_of(draws), list[Claim]()
    steps = 0
    while coming or here:
        steps += 1
        assert steps < 2000, "they wait for each other"
        if coming and random.random() < 0.3:  # type: ignore[attr-defined]
            here.append(coming.pop(0))
        for claim in random.sample(here, len(here)):  # type: ignore[attr-defined]
            found = obstacles(claim, here)
            here.remove(claim)
            if claim.holds and not found and random.random() < 0.3:  # type: ignore[attr-defined]
                continue  # it has finished
            here.append(replace(claim, holds=not found))
            holders = [claim for claim in here if claim.holds]
            assert not any(one.conflicts(two) for one, two in combinations(holders, 2))
        assert not here or entitled(here)


def test_a_device_is_not_left_for_one_that_waits_for_another() -> None:
    small, large, other = claims_of(
        [(0, frozenset("a"), False), (1, frozenset("ab"), False), (1, frozenset("b"), False)]
    )
    small, other = replace(small, holds=True), replace(other, holds=True)
    assert obstacles(small, [small, large, other]) == [], "the urgent one cannot have b yet"
    assert obstacles(large, [small, large, other]) == [other]
    assert obstacles(small, [small, large]) == [large]


def test_nobody_of_the_same_urgency_is_passed_by() -> None:
    first, large, later = claims_of(
        [(0, frozenset("a"), False), (0, frozenset("ab"), False), (0, frozenset("b"), False)]
    )
    first = replace(first, holds=True)
    assert obstacles(later, [first, large, later]) == [large]
