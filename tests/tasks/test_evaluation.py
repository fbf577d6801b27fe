"""What an evaluation makes of what was measured: figures, intervals, slices, the report, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.json
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from scipy.stats import binomtest

from data.errors import InputError, RunError
from tasks.configuration import load_settings
from tasks.evaluation import Evaluation
from tasks.evaluation_answers import Answers
from tasks.evaluation_figures import SLICE_VALUES, evaluation_of
from tasks.evaluation_job import RECORD, EvaluationJob, folder_of, prepare_evaluation
from tasks.evaluation_report import report_html
from tasks.evaluation_screen import as_markdown, print_evaluation
from tasks.evaluation_stages import compare, draw
from tasks.likelihood import Likelihoods
from tasks.measured import Measured, ModelRows

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "data" / "models" / "messages-4m"
SAMPLE = ROOT / "data" / "sample"


def measured(rows: int = 400, slices: dict[str, Sequence[str]] | None = None) -> Measured:
    """A candidate a little worse than its reference, right on nearly the same rows."""
    random = np.random.default_rng(5)
    tokens = random.integers(20, 60, rows).astype(float)
    reference = -tokens * random.uniform(1.5, 2.5, rows)
    candidate = reference - tokens * random.normal(0.02, 0.01, rows)
    right = random.random(rows) < 0.8
    worse = right & (random.random(rows) > 0.02)
    likelihoods = Likelihoods(tokens, candidate, reference, np.floor(tokens * 0.97), tokens * 0.003)
    failed = np.zeros(rows, np.bool_)
    return Measured(
        (ModelRows("candidate", "/models/c", failed, worse), ModelRows("reference", "/models/r", failed, right)),
        likelihoods,
        worse == right,
        slices or {},
    )


def test_figures_are_those_of_their_definitions() -> None:
    given = measured()
    found = evaluation_of(given, "report.html")
    known = given.likelihoods
    assert found.reference is not None
    assert found.agreement is not None
    right = given.models[0].right
    assert right is not None
    interval = binomtest(int(right.sum()), 400).proportion_ci(0.95, method="wilson")
    accuracy = found.candidate.accuracy
    assert accuracy is not None
    assert (accuracy.value, accuracy.low, accuracy.high) == (right.mean(), interval.low, interval.high)
    perplexities = [np.exp(-sums.sum() / known.tokens.sum()) for sums in (known.candidate, known.reference)]
    assert [m.perplexity.value for m in (found.candidate, found.reference) if m.perplexity] == pytest.approx(
        perplexities
    )
    assert found.perplexity_change is not None
    assert found.perplexity_change.value == pytest.approx(perplexities[0] / perplexities[1] - 1)
    assert found.agreement.divergence.value == pytest.approx(0.003)
    assert found.agreement.tokens.value == pytest.approx(known.same.sum() / known.tokens.sum())
    assert (found.rows, found.tokens, found.candidate.errors) == (400, known.tokens.sum(), 0)


def test_changes_are_paired_by_row() -> None:
    found = evaluation_of(measured(), "report.html")
    for change, model in (
        (found.accuracy_change, found.candidate.accuracy),
        (found.perplexity_change, found.candidate.perplexity),
    ):
        assert change is not None
        assert model is not None
        assert change.low < change.value < change.high
        assert change.high - change.low < 0.5 * (model.high - model.low) / model.value


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """The mean divergence of many draws of 60 rows from one population."""
    random = np.random.default_rng(2)
    held = 0
    for _ in range(200):
        tokens = random.integers(20, 60, 60).astype(float)
        divergence = tokens * random.exponential(0.01, 60)
        zeros = np.zeros(60)
        likelihoods = Likelihoods(tokens, zeros - tokens, zeros - tokens, tokens, divergence)
        agreement = evaluation_of(replace(measured(60), likelihoods=likelihoods), "").agreement
        assert agreement is not None
        held += agreement.divergence.low <= 0.01 <= agreement.divergence.high
    assert 175 <= held <= 198


def test_equal_models_do_not_differ_and_the_figures_repeat() -> None:
    given = measured()
    same = replace(given.likelihoods, candidate=given.likelihoods.reference)
    twins = replace(given, models=(replace(given.models[1], name="candidate"), given.models[1]), likelihoods=same)
    found = evaluation_of(twins, "")
    for change in (found.accuracy_change, found.perplexity_change):
        assert change is not None
        assert (change.value, change.low, change.high) == (0, 0, 0)
    assert evaluation_of(given, "") == evaluation_of(given, "")


def test_rows_without_numbers_are_errors_and_left_out_for_both() -> None:
    given = measured()
    broken = given.likelihoods.candidate.copy()
    broken[:7] = np.nan
    models = (replace(given.models[0], failed=np.isnan(broken)), given.models[1])
    found = evaluation_of(replace(given, models=models, likelihoods=replace(given.likelihoods, candidate=broken)), "")
    assert found.reference is not None
    assert (found.candidate.errors, found.reference.errors) == (7, 0)
    assert found.tokens == given.likelihoods.tokens[7:].sum()
    nothing = replace(given.likelihoods, candidate=np.full(400, np.nan))
    none = evaluation_of(replace(given, likelihoods=nothing), "")
    assert (none.agreement, none.perplexity_change, none.candidate.perplexity, none.tokens) == (None, None, None, 0)
    assert none.candidate.accuracy is not None


def test_where_the_reference_has_nothing_right_there_is_no_change() -> None:
    given = measured()
    wrong = replace(given.models[1], right=np.zeros(400, np.bool_))
    assert evaluation_of(replace(given, models=(given.models[0], wrong)), "").accuracy_change is None


def test_slices_show_the_most_frequent_values_and_add_up() -> None:
    values = [f"v{row % 40 if row % 3 else 7}" for row in range(400)]
    found = evaluation_of(measured(slices={"kind": values, "half": ["a", "b"] * 200}), "")
    kinds = [part for part in found.slices if part.column == "kind"]
    assert len(kinds) == SLICE_VALUES
    assert kinds[0].value == "v7"
    assert [part.rows for part in kinds] == sorted((part.rows for part in kinds), reverse=True)
    halves = [part for part in found.slices if part.column == "half"]
    assert [part.rows for part in halves] == [200, 200]
    accuracies = [part.scores[0].accuracy for part in halves]
    assert found.candidate.accuracy is not None
    assert np.mean([one.value for one in accuracies if one]) == pytest.approx(found.candidate.accuracy.value)


def test_answers_are_held_against_labels_and_a_pattern() -> None:
    answers = Answers(("yes", "no ", None, "12"), (True, True, False, True))
    assert answers.equal(["yes", "no", None, "12"]).tolist() == [True, False, False, True]
    assert answers.matching(r"yes|\d+").tolist() == [True, False, False, True]
    assert answers.failed.tolist() == [False, False, True, False]


def test_a_pattern_that_takes_for_ever_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.evaluation_answers.MATCH_SECONDS", 0.2)
    with pytest.raises(RunError, match=r"evaluate\.pattern takes more than 0\.2 seconds"):
        Answers(("a" * 60 + "cd!",), (True,)).matching(r"(a|aa)+c?d")


def test_the_record_can_be_read_again() -> None:
    found = evaluation_of(measured(slices={"half": ["a", "b"] * 200}), "/evaluations/report.html")
    assert Evaluation.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_shows_every_figure_with_its_interval(width: int) -> None:
    found = evaluation_of(measured(slices={"half": ["a", "b"] * 200}), "/evaluations/" + "nested/" * 20 + "report.html")
    stream = io.StringIO()
    print_evaluation(found, Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    accuracy = found.candidate.accuracy
    assert accuracy is not None
    assert any(f"{100 * accuracy.value:.1f} %" in line for line in lines)
    assert any(f"{100 * accuracy.low:.1f} to {100 * accuracy.high:.1f} %" in line for line in lines)
    assert any(line.endswith(found.report) for line in lines), "a path is never broken"
    assert all(len(line.rstrip()) <= width for line in lines if found.report not in line)
    for word in ("Same next token", "Divergence", "Same answer", "Perplexity", "Errors", "half"):
        assert any(word in line for line in lines)


EVIL = "</text><script>alert('$x$')</script>"


@pytest.fixture
def job(tmp_path: Path) -> EvaluationJob:
    return prepared(tmp_path)


def prepared(tmp_path: Path, **changes: Any) -> EvaluationJob:
    """The sample's evaluation of the bundled model against itself, with some settings changed."""
    overrides: dict[str, dict[str, Any]] = {
        "input": {"path": str(SAMPLE / "messages.jsonl")},
        "output": {"path": str(tmp_path / "out")},
        "model": {"path": str(MODEL)},
        "evaluate": {"reference": str(MODEL), "rows": 20},
    }
    for name, value in changes.items():
        section, _, key = name.partition("__")
        overrides.setdefault(section, {})[key] = value
    settings = load_settings(SAMPLE / "config.toml", overrides, environment={})
    return prepare_evaluation(settings, datetime.now(), "overnight evaluate")


def test_the_report_is_one_page_that_escapes_what_rows_hold(job: EvaluationJob) -> None:
    given = measured(slices={"who <b>": [EVIL, "plain"] * 200})
    html = report_html(evaluation_of(given, "report.html"), given, job)
    assert "<script" not in html
    assert "who <b>" not in html
    assert html.count("<svg") == 3
    assert [target for target in re.findall(r'(?:href|src|action)="([^"]*)"', html) if not target.startswith("#")] == []
    assert [target for target in re.findall(r"url\(([^)]*)\)", html) if not target.startswith("#")] == []
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html
    assert "#010101" not in html, "drawings have the page's colours"
    for figure in ("Accuracy", "Perplexity", "Same next token", "Divergence", "plain"):
        assert figure in html


def test_a_token_that_the_candidate_never_says_does_not_end_the_report(job: EvaluationJob) -> None:
    given = measured()
    divergence = given.likelihoods.divergence.copy()
    divergence[:3] = np.inf
    some = replace(given, likelihoods=replace(given.likelihoods, divergence=divergence))
    assert "3 rows beyond all bounds" in report_html(evaluation_of(some, "report.html"), some, job)
    every = replace(given, likelihoods=replace(given.likelihoods, divergence=np.full(400, np.inf)))
    found = evaluation_of(every, "report.html")
    assert "beyond all bounds" not in report_html(found, every, job)
    assert found.candidate.perplexity is not None


def test_prefect_gets_text_without_markup_of_rows() -> None:
    text = as_markdown(evaluation_of(measured(slices={"who": [EVIL, "a|b"] * 200}), "report.html"))
    assert "<script" not in text.replace("\\<script", "")
    assert "a\\|b" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluate__slices": ["subject"]}, ["evaluate.slices", "subject", "intent"]),
        ({"evaluate__reference": "absent-model"}, ["absent-model"]),
        ({"output__path": "out.parquet"}, ["output.path", "folder"]),
        ({"output__path": ""}, ["output.path"]),
        ({"job__kind": "embed", "job__column": "text"}, ["embed"]),
        ({"job__kind": "score", "job__column": "text", "evaluate__pattern": "a"}, ["evaluate.pattern"]),
        ({"evaluate__pattern": "(a"}, ["evaluate.pattern", "regular expression"]),
        ({"evaluate__rows": 0}, ["evaluate.rows"]),
        ({"evaluate__tasks": ["absent.yaml"]}, ["evaluate.tasks"]),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        prepared(tmp_path, **changes)
    assert [word for word in words if word not in str(caught.value)] == []
    assert not (tmp_path / "out").exists()


def test_models_of_other_tokens_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(MODEL, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="only models of one vocabulary can be compared"):
        prepared(tmp_path, evaluate__reference=str(other))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 64}))
    with pytest.raises(InputError, match=r"vocabulary of 3,136 tokens"):
        prepared(tmp_path, evaluate__reference=str(other))


def test_other_files_and_other_rows_are_left_alone(tmp_path: Path) -> None:
    first = prepared(tmp_path)
    with folder_of(first):
        draw.fn(first)
    again = prepared(tmp_path)
    with folder_of(again):
        assert len(draw.fn(again).records) == 20
    fewer = prepared(tmp_path, evaluate__rows=10)
    with folder_of(fewer), pytest.raises(InputError, match="an evaluation on other rows"):
        draw.fn(fewer)
    table = pyarrow.json.read_json(SAMPLE / "messages.jsonl")
    pq.write_table(table, tmp_path / "messages.parquet")
    another = prepared(tmp_path, input__path=str(tmp_path / "messages.parquet"))
    with folder_of(another), pytest.raises(InputError, match="an evaluation on other rows"):
        draw.fn(another)
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(InputError, match=r"thesis\.txt"):
        prepared(tmp_path)


def test_skipping_every_row_leaves_nothing(tmp_path: Path) -> None:
    job = prepared(tmp_path, evaluate__skip=360)
    with folder_of(job), pytest.raises(InputError, match="no rows to evaluate on after the first 360 rows"):
        draw.fn(job)


def test_a_text_is_scored_as_infer_scores_it(tmp_path: Path) -> None:
    """job.kind = "score": no answers, the likelihood from a process of its own, against transformers' loss."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    changes = {"job__kind": "score", "job__column": "text", "job__prompt": "A message: ", "job__expected": None}
    job = prepared(tmp_path, evaluate__reference=None, evaluate__rows=6, **changes)
    with folder_of(job):
        drawn = draw.fn(job)
        found = compare.fn(job, drawn)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    total, count = 0.0, 0
    for record in drawn.records:
        begin = tokenizer("A message: ")["input_ids"]
        ids = torch.tensor([begin + tokenizer(record["text"], add_special_tokens=False)["input_ids"]])
        with torch.no_grad():
            logprobs = model(input_ids=ids).logits[0, len(begin) - 1 : -1].log_softmax(1)
        total += logprobs.gather(1, ids[0, len(begin) :, None]).sum().item()
        count += len(logprobs)
    assert found.tokens == count
    assert found.candidate.perplexity is not None
    assert found.candidate.perplexity.value == pytest.approx(np.exp(-total / count), rel=1e-4)
    assert (found.candidate.accuracy, found.reference, found.agreement) == (None, None, None)
    assert Evaluation.model_validate_json((tmp_path / "out" / RECORD).read_text()) == found
    assert Path(found.report).is_file()


SENTIMENTS = ["neutral", "negative", "positive"]


def test_a_task_of_the_harness_is_measured_under_both_models(tmp_path: Path) -> None:
    """A task without network; its accuracy is that of the choice that transformers' logits find likeliest."""
    pytest.importorskip("lm_eval", reason="the extra `harness` is not installed")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lines = (SAMPLE / "messages.jsonl").read_text().splitlines()[:12]
    (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
    task = {
        "task": "sentiment",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}} It sounds",
        "doc_to_choice": SENTIMENTS,
        "doc_to_target": "sentiment",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (tmp_path / "task.yaml").write_text(json.dumps(task))  # JSON is YAML, too
    changes = {"job__kind": "score", "job__column": "text", "job__prompt": None, "job__expected": None}
    job = prepared(tmp_path, evaluate__tasks=[str(tmp_path / "task.yaml")], evaluate__rows=3, **changes)
    with folder_of(job):
        (found,) = compare.fn(job, draw.fn(job)).tasks
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    right = 0
    for row in map(json.loads, lines):
        likelihoods = []
        for choice in SENTIMENTS:
            begin = len(tokenizer(f"{row['text']} It sounds")["input_ids"])
            ids = torch.tensor([tokenizer(f"{row['text']} It sounds {choice}")["input_ids"]])
            with torch.no_grad():
                logprobs = model(input_ids=ids).logits[0, begin - 1 : -1].log_softmax(1)
            likelihoods.append(logprobs.gather(1, ids[0, begin:, None]).sum().item())
        right += SENTIMENTS[int(np.argmax(likelihoods))] == row["sentiment"]
    assert (found.task, found.metric) == ("sentiment", "acc")
    assert found.reference == found.candidate
    assert found.candidate.value == pytest.approx(right / 12)
    assert found.candidate.error is not None
    assert "sentiment, acc" in (tmp_path / "out" / "report.html").read_text()


def test_a_process_that_cannot_load_a_model_is_told_as_such(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(MODEL, broken)
    changes = {"job__kind": "score", "job__column": "text", "job__prompt": None, "job__expected": None}
    job = prepared(tmp_path, model__path=str(broken), evaluate__reference=None, evaluate__rows=3, **changes)
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 8}))
    with folder_of(job):
        drawn = draw.fn(job)
        with pytest.raises(RunError, match="has shape"):
            compare.fn(job, drawn)
    assert not (tmp_path / "out" / RECORD).exists()
