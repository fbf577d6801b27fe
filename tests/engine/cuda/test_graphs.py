"""Which steps are captured, and what becomes of a capture that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from engine.cuda.graphs import Graphs


class Recorded(Graphs):
    """Captures that say what they replay, and fail where they are told to."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.error: Exception | None = None
        super().__init__(lambda *key: self.done.append(f"work {key}"))

    def _capture(self, key: tuple[int, ...]) -> Any:
        if self.error is not None:
            raise self.error
        done = self.done

        class Graph:
            def replay(self) -> None:
                done.append(f"replay {key}")

        return Graph()


def test_a_step_runs_as_it_is_until_it_was_foreseen() -> None:
    graphs = Recorded()
    graphs.run((4,))
    assert graphs.foresee((4,))
    assert not graphs.foresee((4,)), "it is captured once"
    graphs.run((4,))
    graphs.run((2,))
    assert graphs.done == ["work (4,)", "replay (4,)", "work (2,)"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("not permitted while capturing")])
def test_steps_go_on_where_a_capture_fails(error: Exception) -> None:
    graphs = Recorded()
    graphs.foresee((8,))
    graphs.error = error
    with pytest.warns(UserWarning, match="kernel by kernel"):
        graphs.foresee((4,))
    graphs.error = None
    assert not graphs.foresee((2,)), "one failure is enough"
    graphs.run((4,))
    graphs.run((8,))
    assert graphs.done == ["work (4,)", "replay (8,)"]
    graphs.drop()
    assert graphs.foresee((4,)), "memory was given back"
