"""The size of steps settles on what a device is fastest at, and looking for it costs little."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from engine.pace import Pace

MOST = 8192
PROMPTS = 3_000_000
DECODING = 700

Device = Callable[[int], float]


def linear(prompt: int) -> float:
    """Reads its weights once a step."""
    return 0.005 + 2e-5 * prompt


def bound_by_launches(prompt: int) -> float:
    """As long for a small step as for a large one."""
    return 0.058 + 1e-9 * prompt


def cached_halves(prompt: int) -> float:
    """What lies between two layers is in the cache up to 4,096 tokens."""
    return 0.003 + (2e-5 if prompt <= 4096 else 2.5e-5) * prompt


def cached_quarters(prompt: int) -> float:
    return 0.001 + (2e-5 if prompt <= 2048 else 2.4e-5) * prompt


def indifferent(prompt: int) -> float:
    return 2e-5 * prompt


def job(
    pace: Pace, device: Device, *, noise: float = 0.0, drift: float = 1.0, decoding: int = DECODING
) -> tuple[float, list[int]]:
    """Seconds for all prompts, first steps of a size a second late; the sizes of the steps.

    drift: how many times as long a prompt token takes at the beginning.
    """
    numbers = np.random.default_rng(0)
    left, seconds, sizes = PROMPTS, 0.0, []
    alone = 2e-5 * decoding
    while left > 0:
        if decoding:
            for _ in range(2):
                pace.observe(0, decoding, alone * (1 + noise * numbers.standard_normal()))
        size = pace.size
        prompt = min(size, left, MOST - decoding)
        took = device(prompt) * (1 + (drift - 1) * left / PROMPTS) + alone
        took *= max(0.5, 1 + noise * numbers.standard_normal())
        seconds += took
        left -= prompt
        pace.observe(prompt, decoding, took + (0 if size in sizes else 1.0))
        sizes.append(size)
    return seconds, sizes


def fixed(device: Device, size: int, decoding: int = DECODING) -> float:
    """Seconds for all prompts in steps of one size."""
    size = min(size, MOST - decoding)
    return PROMPTS / size * (device(size) + 2e-5 * decoding)


@pytest.mark.parametrize(
    ("device", "best"),
    [
        (linear, MOST),
        (bound_by_launches, MOST),
        (cached_halves, MOST // 2),
        (cached_quarters, MOST // 4),
    ],
)
@pytest.mark.parametrize("decoding", [0, DECODING, 2048])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_it_settles_on_the_fastest_size(device: Device, best: int, decoding: int, noise: float) -> None:
    _, sizes = job(Pace(MOST), device, noise=noise, decoding=decoding)
    late = sizes[len(sizes) // 3 :]
    assert late.count(best) / len(late) > 0.9


@pytest.mark.parametrize("device", [linear, bound_by_launches, indifferent])
@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_looking_costs_less_than_three_per_cent(device: Device, noise: float) -> None:
    """Where the largest size is the best one."""
    seconds, _ = job(Pace(MOST), device, noise=noise, decoding=0)
    assert seconds < 1.03 * fixed(device, MOST, 0)


@pytest.mark.parametrize("device", [cached_halves, cached_quarters])
def test_a_faster_size_pays(device: Device) -> None:
    seconds, _ = job(Pace(MOST), device, noise=0.02, decoding=0)
    assert seconds < 0.93 * fixed(device, MOST, 0)


@pytest.mark.parametrize(("device", "best"), [(linear, MOST), (cached_halves, MOST // 2)])
def test_prompts_that_become_shorter_do_not_mislead(device: Device, best: int) -> None:
    """A later measurement is faster whatever the size."""
    _, sizes = job(Pace(MOST), device, drift=5.0)
    late = sizes[len(sizes) // 3 :]
    assert late.count(best) / len(late) > 0.9


def test_short_runs_never_look() -> None:
    pace = Pace(MOST)
    for _ in range(31):
        assert pace.size == MOST
        pace.observe(MOST, 0, 0.1)


def test_steps_that_are_not_full_neither_count_nor_hold_it_up() -> None:
    """Where prompts come as others end, a comparison that gets nowhere is given up."""
    pace = Pace(MOST)
    sizes = []
    for _ in range(500):
        sizes.append(pace.size)
        pace.observe(1000, 400, 0.04)
    assert set(sizes) == {MOST}


def test_small_budgets_are_not_divided() -> None:
    pace = Pace(300)
    for step in range(300):
        assert pace.size == 300
        pace.observe(300, 0, 0.1 * (1 + step % 7))


def test_the_same_measurements_give_the_same_sizes() -> None:
    assert job(Pace(MOST), linear, noise=0.1) == job(Pace(MOST), linear, noise=0.1)
