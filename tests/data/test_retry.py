"""Retried error rows: only they are computed, their new results win, and everything survives interruption."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from data.audit import audit
from data.errors import InputError, RunError
from data.ledger import Ledger
from data.plan import load_windows
from data.publish import OverBudget, prepare_output, published_base
from data.retry import load_retries, plan_retry
from data.settings import OutputSettings
from data.shards import prompts_path, read_prompts
from data.target import Target

ROWS = [{"id": number, "text": f"text {number * 7 % 60}" if number % 40 else ""} for number in range(300)]
BAD = ("text 5", "text 12", "text 33")


def fails(text: str, _occurrence: int) -> bool:
    return text in BAD


def retry(lab: Any) -> Any:
    base = published_base(lab.run, lab.output)
    return plan_retry(lab.run, lab.dataset, lab.prompter, lab.run.id, lab.options, load_windows(lab.run), base)


@pytest.fixture
def failed(lab: Callable[..., Any]) -> Any:
    made = lab(ROWS)
    made.output = OutputSettings(path=str(made.root / "out"), error_budget=0.05)
    made.compute(fails)
    return made


def texts(lab: Any, window: Any) -> list[str]:
    return [bytes(ids.astype("u1")).decode() for shard in window.shards for ids in read_prompts(lab.run, shard.id).ids]


def outputs(lab: Any) -> list[str | None]:
    return [row["output"] for row in lab.rows()]


COMPLETE = [f"{row['text'].upper()}#0" if row["text"] else None for row in ROWS]


def test_only_the_failed_sequences_are_computed_again_and_their_results_win(failed: Any) -> None:
    with pytest.raises(OverBudget):
        failed.publish()
    window = retry(failed)
    assert sorted(texts(failed, window)) == sorted(BAD)
    failed.work(window.shards)
    manifest = failed.publish()
    assert outputs(failed) == COMPLETE
    assert manifest.errors == {"blank_prompt": 8}
    assert manifest.retries == 1
    assert audit(failed.target).valid
    assert retry(failed) is None


def test_a_published_result_is_replaced_from_its_own_answers(failed: Any) -> None:
    failed.output = OutputSettings(path=str(failed.root / "out"), error_budget=1)
    first = failed.publish()
    assert first.errors["nan_logits"] == 15
    assert not os.listdir(failed.run.shards)
    window = retry(failed)
    assert sorted(texts(failed, window)) == sorted(BAD)
    assert failed.publish() == first, "a retry that is not finished changes nothing"
    failed.work(window.shards, lambda text, _: text == "text 12")
    second = failed.publish()
    assert second.errors == {"blank_prompt": 8, "nan_logits": 5}
    assert (first.retries, second.retries) == (0, 1)
    window = retry(failed)
    assert (texts(failed, window), window.name) == (["text 12"], "r00002")
    failed.work(window.shards)
    failed.publish()
    assert outputs(failed) == COMPLETE
    assert sorted(os.listdir(failed.root)) == ["in.parquet", "out", "run"]
    assert not os.listdir(failed.run.shards)


def test_a_file_of_a_user_beside_the_result_does_not_go_with_it(failed: Any) -> None:
    failed.output = OutputSettings(path=str(failed.root / "out"), error_budget=1)
    failed.publish()
    (failed.target / ".notes").write_text("mine")
    failed.work(retry(failed).shards)
    with pytest.raises(InputError, match=r"no part of a result.* \.notes; move it away"):
        failed.publish()
    (failed.target / ".notes").unlink()
    failed.publish()
    assert outputs(failed) == COMPLETE


@pytest.mark.parametrize("name", ["answers.jsonl", "answers.parquet"])
def test_it_works_for_single_files(lab: Callable[..., Any], name: str) -> None:
    made = lab(ROWS)
    made.output = OutputSettings(path=str(made.root / name), error_budget=1, prefix="llm_")
    made.compute(fails)
    made.publish()
    made.work(retry(made).shards)
    made.publish()
    assert [row["llm_output"] for row in made.rows()] == COMPLETE
    assert audit(made.target).valid


@pytest.mark.parametrize("name", ["answers", "answers.jsonl"])
def test_rows_that_fail_alike_again_are_published_once_more(lab: Callable[..., Any], name: str) -> None:
    made = lab(ROWS)
    made.output = OutputSettings(path=str(made.root / name), error_budget=1)
    made.compute(fails)
    first = made.publish()
    for generation in (1, 2):
        made.work(retry(made).shards, fails)
        manifest = made.publish()
        assert (manifest.retries, manifest.digest) == (generation, first.digest)
        assert not os.listdir(made.run.shards)
        before = made.target.stat().st_ino
        assert (made.publish(), made.target.stat().st_ino) == (manifest, before)
    made.work(retry(made).shards)
    assert made.publish().retries == 3
    assert outputs(made) == COMPLETE


@pytest.mark.parametrize("name", ["answers", "answers.jsonl"])
def test_a_result_of_equal_bytes_whose_process_died_gets_the_manifest_of_its_own(
    lab: Callable[..., Any], name: str
) -> None:
    """The second result lies in place, its manifest not written yet."""
    made = lab(ROWS)
    made.output = OutputSettings(path=str(made.root / name), error_budget=1)
    made.compute(fails)
    made.publish()
    made.work(retry(made).shards, fails)
    manifest = made.publish()
    Target.at(made.target, made.run).manifest.unlink()
    assert prepare_output(made.run, made.output) == manifest
    made.work(retry(made).shards)
    made.publish()
    assert outputs(made) == COMPLETE


@pytest.mark.parametrize("name", ["answers", "answers.jsonl"])
def test_a_crash_while_the_result_is_replaced_does_not_lose_the_answers(lab: Callable[..., Any], name: str) -> None:
    """The old result, the only place where its answers are by then, lies under a hidden name when the process dies."""
    made = lab(ROWS)
    made.output = OutputSettings(path=str(made.root / name), error_budget=1)
    made.compute(fails)
    first = made.publish()
    window = retry(made)
    made.work(window.shards)
    Target.at(made.target, made.run).set_aside()
    assert not made.target.exists()
    assert prepare_output(made.run, made.output) == first
    assert retry(made) is None, "what is left to retry can be told"
    made.publish()
    assert outputs(made) == COMPLETE
    assert audit(made.target).valid
    beside = [] if made.target.is_dir() else [f"_{name}.manifest.json"]
    assert sorted(os.listdir(made.root)) == sorted([name, *beside, "in.parquet", "run"])


def test_an_interrupted_retry_is_gone_on_with(failed: Any) -> None:
    failed.options = replace(failed.options, shard_tokens=1)
    window = retry(failed)
    for shard in window.shards:
        prompts_path(failed.run, shard.id).unlink()
    again = retry(failed)
    assert again == window
    assert sorted(texts(failed, again)) == sorted(BAD)
    assert len(load_retries(failed.run)) == 1


@pytest.fixture
def retried_twice(failed: Any) -> Any:
    """Two generations, of which the second left an error, and no result, since the budget has no room for it."""
    failed.output = OutputSettings(path=str(failed.root / "out"), error_budget=0.03)
    for _ in range(2):
        failed.work(retry(failed).shards, lambda text, _: text == "text 12")
        with pytest.raises(OverBudget):
            failed.publish()
    return failed


def test_an_earlier_generation_whose_data_were_deleted_as_told_is_gone_on_with(retried_twice: Any) -> None:
    run = retried_twice.run
    (shard,) = load_retries(run)[0].shards
    data = run.shards / f"{Ledger(run).commits()[shard.id].sha256}.parquet"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(RunError, match=f"{data.name} is damaged.* delete it, and delete .*{shard.id}.json"):
        retried_twice.publish()
    data.unlink()
    (run.commits / f"{shard.id}.json").unlink()
    window = retry(retried_twice)
    assert (window.name, sorted(texts(retried_twice, window))) == ("r00001", sorted(BAD))
    retried_twice.work(window.shards)
    with pytest.raises(OverBudget, match="nan_logits 5"):
        retried_twice.publish()  # the latest answer to a row counts, which is an error still
    window = retry(retried_twice)
    assert (window.name, texts(retried_twice, window)) == ("r00003", ["text 12"])
    retried_twice.work(window.shards)
    assert retried_twice.publish().retries == 3
    assert outputs(retried_twice) == COMPLETE


def test_a_generation_that_is_published_is_not_computed_again_for_its_lost_record(retried_twice: Any) -> None:
    retried_twice.output = OutputSettings(path=str(retried_twice.root / "out"), error_budget=0.1)
    assert retried_twice.publish().retries == 2
    (shard,) = load_retries(retried_twice.run)[0].shards
    (retried_twice.run.commits / f"{shard.id}.json").unlink()
    window = retry(retried_twice)
    assert (window.name, texts(retried_twice, window)) == ("r00003", ["text 12"])
    retried_twice.work(window.shards)
    assert retried_twice.publish().retries == 3
    assert outputs(retried_twice) == COMPLETE


def test_an_error_that_changes_and_changes_back_is_published_each_time(failed: Any) -> None:
    failed.output = OutputSettings(path=str(failed.root / "out"), error_budget=1)
    failed.publish()
    for generation, code in enumerate(("out_of_memory", "nan_logits", "nan_logits"), start=1):
        failed.work(retry(failed).shards, fails, code)
        manifest = failed.publish()
        assert (manifest.retries, manifest.errors) == (generation, {"blank_prompt": 8, code: 15})
        assert not os.listdir(failed.run.shards)
    failed.work(retry(failed).shards)
    failed.publish()
    assert outputs(failed) == COMPLETE


def test_a_retry_that_fails_again_keeps_the_error_and_counts_anew(failed: Any) -> None:
    ids = set()
    for generation in (1, 2):
        window = retry(failed)
        assert window.generation == generation
        ids |= {shard.id for shard in window.shards}
        failed.work(window.shards, fails)
    assert len(ids) == 2
    with pytest.raises(OverBudget, match="nan_logits 15"):
        failed.publish()
    assert len(Ledger(failed.run).commits()) == sum(len(w.shards) for w in load_windows(failed.run)) + 2


def test_occurrences_are_those_of_the_first_time(lab: Callable[..., Any]) -> None:
    made = lab([{"id": number, "text": f"t{number % 3}"} for number in range(160)])
    made.options = replace(made.options, fold=False)
    made.output = OutputSettings(path=str(made.root / "out"), error_budget=1)
    made.compute(lambda text, occurrence: text == "t1" and occurrence in (4, 30))
    made.publish()
    window = retry(made)
    prompts = read_prompts(made.run, window.shards[0].id)
    assert sorted(prompts.occurrences) == [4, 30]
    made.work(window.shards)
    made.publish()
    assert outputs(made) == [f"T{number % 3}#{number // 3}" for number in range(160)]


def test_a_run_that_is_not_planned_to_the_end_is_not_retried(failed: Any) -> None:
    with pytest.raises(InputError, match="not planned to its end"):
        plan_retry(failed.run, failed.dataset, failed.prompter, failed.run.id, failed.options, [])
