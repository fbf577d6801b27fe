"""Steps that run out of memory are computed in parts: the same answers, smaller steps, errors only where nothing helps.

The fault is real but for its cause: a layer in the middle of the model raises what torch raises, when the KV of the
layers before it is written already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from engine.generation import Generator
from engine.recovery import halves
from engine.request import Completion, Request, run
from engine.sequence import Sequence
from engine.settings import EngineSettings, SamplingSettings
from engine.step import Chunk, Step
from tests.engine.conftest import CONTEXT, VOCABULARY
from tests.engine.test_generation import answers as answers_of
from tests.engine.test_generation import expected
from tests.engine.test_residence import crowded


@contextmanager
def failing(
    model: PreTrainedModel, fails: Callable[[torch.Tensor], bool], error: type[Exception] = torch.OutOfMemoryError
) -> Iterator[list[int]]:
    """Forward passes whose input ids [1, T] `fails` names run out of memory in a middle layer; tokens of the others."""
    passes: list[int] = []
    ids = torch.empty(1, 0)

    def note(_module: object, _args: object, keywords: dict[str, torch.Tensor]) -> None:
        nonlocal ids
        ids = keywords["input_ids"]

    def fail(_module: object, _args: object) -> None:
        if fails(ids):
            raise error("out of memory: tried to allocate what is not there")
        passes.append(ids.shape[1])

    hooks = [
        model.register_forward_pre_hook(note, with_kwargs=True),
        model.model.layers[1].register_forward_pre_hook(fail),
    ]
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


def more_than(tokens: int) -> Callable[[torch.Tensor], bool]:
    return lambda ids: ids.shape[1] > tokens


def generator(
    model: PreTrainedModel, *, deterministic: bool = False, stop_ids: Seq[int] = (), **sampling: object
) -> Generator:
    return Generator(
        model,
        SamplingSettings(**({"max_tokens": 12} | sampling)),  # type: ignore[arg-type]
        EngineSettings(deterministic=deterministic),
        stop_ids=stop_ids,
        token_bytes=(),
        context_length=CONTEXT,
    )


def prompts() -> list[list[int]]:
    """Thirty of their own, one long, and six with a common beginning."""
    numbers = np.random.default_rng(0)

    def text(low: int, high: int) -> list[int]:
        return list(numbers.integers(0, VOCABULARY, numbers.integers(low, high + 1)).tolist())

    stem = text(70, 70)
    return [text(1, 20) for _ in range(30)] + [text(200, 200)] + [stem + text(1, 9) for _ in range(6)]


def answers(engine: Generator, texts: list[list[int]]) -> dict[int, Completion]:
    """Completions by id; each id exactly once."""
    return answers_of(engine, [Request(i, text) for i, text in enumerate(texts)])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("ahead", [0, 1])
def test_greedy_answers_equal_generate(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel], ahead: int, error: type[Exception]
) -> None:
    engine = generator(models["qwen2"])
    engine._ahead = ahead
    with failing(models["qwen2"], more_than(100), error) as passes:
        done = answers(engine, prompts())
    for i, text in enumerate(prompts()):
        assert done[i].token_ids == expected(references["qwen2"], text, 12), i
    assert max(passes) > 50, "parts are not smaller than they have to be"
    assert engine.statistics()["out_of_memory"] == 1, "later steps are planned smaller"
    assert engine.statistics()["shared_tokens"] >= 5 * 64
    assert not engine._scheduler.pool.held


@pytest.mark.parametrize("most", [10, 60, 250])
def test_samples_and_penalties_are_those_of_an_undisturbed_engine(
    models: dict[str, PreTrainedModel], most: int
) -> None:
    sampling = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.3, "seed": 5}
    plain = answers(generator(models["llama"], **sampling), prompts())
    engine = generator(models["llama"], **sampling)
    with failing(models["llama"], more_than(most)):
        assert answers(engine, prompts()) == plain
    assert engine.statistics()["out_of_memory"] > 0


def test_a_decode_step_that_fails_halves_the_rows(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel]
) -> None:
    """Its rows are there: they go on in two parts, which are not tried as one again. Later ones are 30 at a time."""
    texts = [[i] for i in range(60)]
    engine = generator(models["mistral"])
    tried: list[int] = []

    def fails(ids: torch.Tensor) -> bool:
        tried.append(ids.shape[1])
        return len(tried) == 4

    with failing(models["mistral"], fails):
        done = answers(engine, texts)
    assert tried == [60] * 4 + [30] * 18
    for i, text in enumerate(texts):
        assert done[i].token_ids == expected(references["mistral"], text, 12), i
    assert engine.statistics()["out_of_memory"] == 1
    with failing(models["mistral"], lambda _ids: False) as passes:
        answers(engine, [[i, 1] for i in range(60)])
    assert passes == ([60] + [30] * 11) * 2


def test_what_cannot_be_computed_alone_is_an_error_and_the_others_go_on(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel]
) -> None:
    """Token 50 in a prompt or an answer; rows that would share blocks with it are not computed from their garbage."""
    numbers = np.random.default_rng(3)
    clean = [value for value in range(VOCABULARY) if value != 50]
    texts = [numbers.choice(clean, 30).tolist() for _ in range(12)]
    stem = numbers.choice(clean, 40).tolist()
    texts += [[*stem, 50, *stem, i] for i in range(3)] + [[*stem, i] for i in range(3)]
    for ahead in (0, 1):
        engine = generator(models["qwen3"])
        engine._ahead = ahead
        with failing(models["qwen3"], lambda ids: bool((ids == 50).any())):
            done = answers(engine, texts)
        for i, text in enumerate(texts):
            want = expected(references["qwen3"], text, 12)
            if 50 in text or 50 in want[:-1]:
                assert done[i].error is not None
                assert done[i].error[0] == "out_of_memory"
                assert done[i].token_ids == []
            else:
                assert done[i].token_ids == want, i
        errors = sum(completion.error is not None for completion in done.values())
        assert 3 <= errors < 10
        assert engine.statistics()["errors"] == errors
        assert not engine._scheduler.pool.held
        assert answers(engine, texts[:2])[0].token_ids == done[0].token_ids, "the engine goes on"


def test_an_answer_that_ended_before_is_not_lost(
    models: dict[str, PreTrainedModel], references: dict[str, PreTrainedModel]
) -> None:
    """One step ahead, the step after the last token runs out of memory before that token is read."""
    text = prompts()[3]
    want = expected(references["llama"], text, 12)
    engine = generator(models["llama"], stop_ids=[want[4]])
    engine._ahead = 1
    assert want[4] not in want[:4]
    with failing(models["llama"], lambda ids: int(ids[0, -1]) == want[4] and ids.shape[1] == 1):
        done = answers(engine, [text])[0]
    assert (done.token_ids, done.error) == (want[:4], None)
    assert engine.statistics()["out_of_memory"] == 1


def test_swaps_are_made_once(models: dict[str, PreTrainedModel]) -> None:
    """A step that fails has moved KV to the host and back already."""
    sampling = {"temperature": 0.8, "repetition_penalty": 1.3, "max_tokens": 80}
    texts = prompts()[:12]
    plain = answers(crowded(models["llama"], blocks=400, ahead=1, **sampling), texts)
    engine = crowded(models["llama"], blocks=20, ahead=1, **sampling)
    count = 0

    def every_third_large(ids: torch.Tensor) -> bool:
        nonlocal count
        count += ids.shape[1] > 2
        return ids.shape[1] > 2 and count % 3 == 0

    with failing(models["llama"], every_third_large):
        assert answers(engine, texts) == plain
    assert engine.statistics()["swaps"] >= 4
    assert engine.statistics()["out_of_memory"] >= 10


def test_a_deterministic_engine_forgets_the_memory_it_met(models: dict[str, PreTrainedModel]) -> None:
    engine = generator(models["qwen2"], deterministic=True)
    with failing(models["qwen2"], more_than(100)):
        first = list(run(engine, [Request(i, text) for i, text in enumerate(prompts())]))
        before = engine.statistics()
        assert list(run(engine, [Request(i, text) for i, text in enumerate(prompts())])) == first
    assert before["out_of_memory"] == 1
    assert engine.statistics()["out_of_memory"] == 2
    assert engine.statistics()["steps"] == 2 * before["steps"]


def test_other_errors_are_not_taken_for_it(models: dict[str, PreTrainedModel]) -> None:
    def broken(ids: torch.Tensor) -> bool:
        raise RuntimeError(f"shapes of {ids.shape[1]} tokens do not fit")

    with failing(models["qwen2"], broken), pytest.raises(RuntimeError, match="do not fit"):
        answers(generator(models["qwen2"]), [[1, 2]])


def test_halves_are_the_whole() -> None:
    made = [Sequence([i], np.arange(50), 5, bytes(16)) for i in range(6)]
    step = Step(made[:3], [Chunk(made[3], 16, 20), Chunk(made[4], 0, 50), Chunk(made[5], 3, 50)], admitted=made[4:])

    def tokens(part: Step) -> list[tuple[Sequence, int]]:
        found = [(s, -1) for s in part.decode]
        return found + [(c.sequence, at) for c in part.chunks for at in range(c.start, c.stop)]

    waiting, units = [step], 0
    while waiting:
        part = waiting.pop()
        if part.tokens == 1:
            units += 1
            continue
        first, second = halves(part)
        assert abs(first.tokens - second.tokens) <= 1
        assert tokens(first) + tokens(second) == tokens(part)
        assert first.sampled + second.sampled == part.sampled
        assert not first.admitted + second.admitted
        waiting += [first, second]
    assert units == step.tokens
