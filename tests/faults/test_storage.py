"""What storage may do: refuse a sync, a byte, a file or a name, take half of a write, lose or change what it holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import checker
from tests.faults.conftest import Site, Undisturbed
from tests.faults.full import full
from tests.faults.laboratory import Laboratory
from tests.faults.order import Outcome
from tests.faults.scenario import INSTANT, Scenario


def failed(scenario: Scenario, outcome: Outcome, *words: str) -> None:
    """It failed fast, said why, published nothing, and its ledger is sound."""
    assert outcome.status == 1, outcome.output
    assert not outcome.timed_out
    assert [word for word in words if word not in outcome.output] == [], outcome.output
    assert "Traceback" not in outcome.output
    assert not scenario.manifest.exists()
    assert list(checker.ledger(scenario)) == []


def resumes(lab: Laboratory, scenario: Scenario, expected: dict[str, str]) -> None:
    before = checker.look(scenario)
    assert list(checker.after_resume(scenario, lab.run(scenario.order()), before, expected)) == []


@pytest.mark.parametrize(
    ("point", "error", "words"),
    [
        ("worker fsync run/tmp 5", "EIO", "Input/output error"),
        ("worker fsync run/commits/ 1", "EIO", "Input/output error"),
        pytest.param("driver fsync run/tmp 3", "EIO", "Input/output error", marks=full),
        pytest.param("driver fsync new 1", "EIO", "Input/output error", marks=full),
        # Of a start's syncs of the output's folder, which come first, a failure refuses it; these are of publication.
        pytest.param("driver fsync ./ 10", "EIO", "Input/output error", marks=full),
        pytest.param("driver fsync ./ 13", "EIO", "Input/output error", marks=full),
        pytest.param("worker write run/tmp 5", "ENOSPC", "No space left", marks=full),
        ("worker link run/commits 2", "ENOSPC", "No space left"),
        pytest.param("driver write new 1", "ENOSPC", "No space left", marks=full),
        pytest.param("worker write run/tmp 3", "EDQUOT", "quota", marks=full),
    ],
)
def test_a_refusal_ends_the_run_and_it_is_resumed(
    lab: Laboratory, site: Site, undisturbed: Undisturbed, point: str, error: str, words: str
) -> None:
    scenario = site(100, "workers.dp_degree=1", worker=INSTANT)  # of several, each leaves others rows to repeat
    outcome = lab.run(scenario.order(faults={point: error}))
    assert outcome.reached == (point,), outcome.output
    failed(scenario, outcome, words)
    resumes(lab, scenario, undisturbed(scenario))


def test_a_file_size_limit_ends_the_run_and_it_is_resumed(
    lab: Laboratory, site: Site, undisturbed: Undisturbed
) -> None:
    scenario = site(100, worker=INSTANT)
    failed(scenario, lab.run(scenario.order(limits={"FSIZE": 6000})), "too large")
    resumes(lab, scenario, undisturbed(scenario))


def test_too_few_files_to_be_opened_start_nothing(lab: Laboratory, site: Site) -> None:
    scenario = site(100, worker=INSTANT)
    outcome = lab.run(scenario.order(limits={"NOFILE": 40}, seconds=40))
    assert outcome.status == 2, outcome.output
    assert "ulimit -n" in outcome.output
    assert not scenario.run.exists()


def test_short_writes_lose_nothing(lab: Laboratory, site: Site, undisturbed: Undisturbed) -> None:
    scenario = site(100, worker=INSTANT)
    every = {f"{who} write {place} 0": "short" for who in ("driver", "worker") for place in ("run/tmp", "new")}
    outcome = lab.run(scenario.order(faults=every))
    assert len(outcome.reached) > 20
    assert list(checker.after_resume(scenario, outcome, checker.NOTHING, undisturbed(scenario))) == []


@pytest.mark.parametrize("point", ["driver mkdir run 1", "driver link probe 1"])
def test_a_folder_that_cannot_be_written_starts_nothing(lab: Laboratory, site: Site, point: str) -> None:
    scenario = site(100, worker=INSTANT)
    outcome = lab.run(scenario.order(faults={point: "EROFS"}))
    assert outcome.status == 2
    assert "Read-only file system" in outcome.output
    assert not (scenario.run / "events.jsonl").exists()


def test_an_output_on_another_filesystem_starts_nothing(lab: Laboratory, site: Site) -> None:
    scenario = site(100, worker=INSTANT)
    words = list(scenario.arguments())
    words[words.index("--output") + 1] = "/dev/shm/overnight-faults/out"
    outcome = lab.run(scenario.order().model_copy(update={"arguments": tuple(words)}))
    assert outcome.status == 2
    assert "another filesystem" in outcome.output
    assert not (scenario.run / "events.jsonl").exists()


def crashed(lab: Laboratory, scenario: Scenario) -> tuple[Path, Path]:
    """A run that was killed with commits made: a commit's record and its data."""
    outcome = lab.run(scenario.order(faults={"worker link run/commits 4": "kill-all"}))
    assert outcome.reached
    record = min(scenario.run.glob("commits/*.json"))
    (data,) = [path for path in scenario.run.glob("shards/*") if path.stem in record.read_text(encoding="utf-8")]
    return record, data


@pytest.mark.parametrize(
    "damage",
    [
        "data flipped",
        "record emptied",
        pytest.param("data deleted", marks=full),
        pytest.param("record flipped", marks=full),
    ],
)
def test_damage_to_what_is_committed_is_named_and_repaired(
    lab: Laboratory, site: Site, undisturbed: Undisturbed, damage: str
) -> None:
    scenario = site(100, worker=INSTANT)
    record, data = crashed(lab, scenario)
    victim = data if damage.startswith("data") else record
    content = victim.read_bytes()
    if damage.endswith("flipped"):
        middle = len(content) // 2
        victim.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage.endswith("emptied"):
        victim.write_bytes(b"")
    else:
        victim.unlink()
    outcome = lab.run(scenario.order())
    assert outcome.status == 1
    shown = outcome.output.replace("\n", "")
    assert victim.name in shown, outcome.output
    assert record.name in shown, "what is to be deleted is not named"
    assert not scenario.manifest.exists()
    record.unlink()
    data.unlink(missing_ok=True)
    resumes(lab, scenario, undisturbed(scenario))
