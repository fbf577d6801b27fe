"""Laboratories that the tests of this folder share; a run that is to be disturbed, laid out for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import checker
from tests.faults.campaign import Benches, benches
from tests.faults.laboratory import Laboratory
from tests.faults.scenario import INSTANT, PACED, REAL, Scenario

Site = Callable[..., Scenario]
Undisturbed = Callable[[Scenario], dict[str, str]]


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Benches]]:
    """A laboratory in which two trials can be made side by side."""
    with benches(tmp_path_factory.mktemp("faults"), 2) as made:
        yield made


@pytest.fixture(scope="session")
def lab(places: list[Benches]) -> Laboratory:
    """The laboratory."""
    return places[0].laboratory


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Make a run of so many shards that it can be disturbed while it works."""

    def make(rows: int = 300, *sets: str, name: str = "folder", worker: str = PACED) -> Scenario:
        scenario = Scenario(name, tmp_path, worker, rows, sets=sets)
        scenario.write_input()
        return scenario

    return make


@pytest.fixture(scope="session")
def undisturbed(lab: Laboratory, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The digests of what a scenario publishes undisturbed, from a run elsewhere."""
    known: dict[tuple[str, int, bool], dict[str, str]] = {}

    def digests(scenario: Scenario) -> dict[str, str]:
        key = scenario.name, scenario.rows, scenario.worker == REAL
        if key not in known:
            worker = REAL if scenario.worker == REAL else INSTANT
            twin = Scenario(scenario.name, tmp_path_factory.mktemp("undisturbed"), worker, scenario.rows)
            twin.write_input()
            outcome = lab.run(twin.order())
            assert outcome.status == 0, outcome.output
            assert list(checker.result(twin)) == []
            known[key] = checker.digests(twin)
        return known[key]

    return digests
