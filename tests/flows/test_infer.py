"""`overnight infer` as a user meets it: exit status, published rows, messages, resuming."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.flows.conftest import MODEL, ROOT, Overnight, messages, program, write_rows


def read(output: Path) -> list[dict[str, Any]]:
    files = sorted(output.glob("part-*.parquet")) if output.is_dir() else [output]
    rows: list[dict[str, Any]] = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    return rows


def digest(output: Path) -> str:
    state = hashlib.sha256()
    for file in sorted(output.glob("part-*")):
        state.update(file.name.encode() + file.read_bytes())
    return state.hexdigest()


def test_every_row_is_answered_in_order(overnight: Overnight, tmp_path: Path) -> None:
    rows = [{**row, "tag": row["id"] if row["id"] % 2 else "even"} for row in messages(60)]
    rows += [{"id": 60, "text": "  "}, '{"id": 61, "text": ', {"id": 62, "text": "x " * 5000}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    done = overnight("infer", "--input", source, "--output", "out", "--set", "output.error_budget=0.1")
    assert done.returncode == 0
    published = read(tmp_path / "out")
    assert [row["id"] for row in published] == [*range(61), None, 62]
    assert [row["status"] for row in published] == ["ok"] * 60 + ["error"] * 3
    assert [row["error"]["code"] for row in published[60:]] == ["blank_prompt", "invalid_json", "prompt_too_long"]
    assert all(row["output_tokens"] > 0 and row["finish_reason"] in ("stop", "length") for row in published[:60])
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert (manifest["rows"], manifest["ok"], manifest["complete"]) == (63, 60, True)
    assert [row["tag"] for row in published[:2]] == ['"even"', "1"]
    assert "'tag'" in done.stderr
    for word in ("63", "60", "blank_prompt", "invalid_json", "prompt_too_long", "61"):
        assert word in done.stdout
    assert overnight("audit", "out").returncode == 0


def test_the_answers_are_those_of_transformers(overnight: Overnight, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = write_rows(tmp_path / "in.jsonl", list(messages(12)))
    assert overnight("infer", "--input", source, "--output", "out.parquet").returncode == 0
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    for row in read(tmp_path / "out.parquet"):
        message = [{"role": "user", "content": row["text"]}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**ids, max_new_tokens=8, do_sample=False)[0, ids["input_ids"].shape[1] :]
        assert row["output"] == tokenizer.decode(made, skip_special_tokens=True)


def test_running_again_verifies_and_changes_nothing(overnight: Overnight, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(20)))
    assert overnight("infer", "--input", source, "--output", "out").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again = overnight("infer", "--input", source, "--output", "out", timeout=20)
    assert again.returncode == 0
    assert "verified" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before
    part = tmp_path / "out" / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert overnight("infer", "--input", source, "--output", "out").returncode == 1
    assert overnight("audit", "out").returncode == 1


def test_what_cannot_be_deleted_after_publication_is_a_warning(overnight: Overnight, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(20)))
    stuck = tmp_path / "run" / "shards" / "a folder, which no unlink removes"
    stuck.mkdir(parents=True)
    for words in ("completed", "verified"):
        done = overnight("infer", "--input", source, "--output", "out", "--run-dir", "run")
        assert done.returncode == 0
        assert words in done.stdout
        assert "Warning   the result is whole, but not all that it leaves behind could be deleted" in done.stdout
        assert stuck.name in done.stdout.split("Warning")[1]
        assert done.stderr.count(stuck.name) <= 1
    assert overnight("audit", "out").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "sampling.temprature=1"], ["sampling.temprature", "sampling.temperature"]),
        (["--set", "job.prompt={{ txet }}"], ["txet", "text"]),
        (["--model", "absent-model"], ["absent-model"]),
        (["--input", "absent.jsonl"], ["absent.jsonl"]),
        (["--set", "engine.dtype=float16"], ["engine.dtype"]),
        (["--output", "data.csv"], ["output.path"]),
    ],
)
def test_a_wrong_setting_starts_nothing(
    overnight: Overnight, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    pq.write_table(pa.Table.from_pylist(list(messages(3))), tmp_path / "in.parquet")
    defaults = {"--input": "in.parquet", "--output": "out"}
    for option in arguments[::2]:
        defaults.pop(option, None)
    rest = [word for pair in defaults.items() for word in pair]
    done = overnight("infer", *arguments, *rest, timeout=20)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("overnight: ")]
    assert [word for word in words if word not in line] == []
    assert not (tmp_path / ".overnight").exists()


def test_no_rows_are_an_empty_result(overnight: Overnight, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").touch()
    assert overnight("infer", "--input", "in.jsonl", "--output", "out.parquet").returncode == 0
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0
    assert "started" not in kinds(tmp_path), "no worker was needed"
    assert not list(tmp_path.glob(".overnight/*/workers"))


def test_lines_keep_their_values_whatever_their_types(overnight: Overnight, tmp_path: Path) -> None:
    rows = [*messages(5), '{"id": 5, "text": 42, "price": 1.100}', {"id": 6, "text": ""}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    done = overnight("infer", "--input", source, "--output", "out.jsonl", "--set", "output.error_budget=0.5")
    assert done.returncode == 0
    assert "blank_prompt" in done.stdout
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert lines[5].startswith('{"id": 5, "text": 42, "price": 1.100, ')
    elsewhere = overnight("infer", "--input", source, "--output", "other.jsonl", "--set", "output.error_budget=0.5")
    assert elsewhere.returncode == 2
    assert "published already" in elsewhere.stderr


def kinds(folder: Path) -> list[str]:
    """The events of the one run below a folder."""
    (path,) = folder.glob(".overnight/*/events.jsonl")
    return [json.loads(line)["event"] for line in path.open()]


def test_more_bad_rows_than_the_budget_allows_are_refused_before_a_worker_starts(
    overnight: Overnight, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", [*messages(20), {"id": 20, "text": ""}])
    arguments = ["infer", "--input", source, "--output", "out"]
    refused = overnight(*arguments)
    assert refused.returncode == 1
    assert "1 of 21 rows cannot be asked (blank_prompt 1), more than output.error_budget = 0.01" in " ".join(
        refused.stdout.split()
    )
    assert "started" not in kinds(tmp_path)
    assert not (tmp_path / "out").exists()
    assert overnight(*arguments, "--set", "output.error_budget=0.05").returncode == 0
    assert kinds(tmp_path).count("planned") == 2, "the plan is the same"


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("victim", ["group", "driver", "worker"])
def test_killed_and_resumed(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path, victim: str
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(400)))
    arguments = ["infer", "--input", source, "--config", config, "--set", "sampling.max_tokens=24"]
    assert overnight(*arguments, "--output", "plain/out").returncode == 0

    words = program(*arguments, "--output", "killed/out")
    commits = tmp_path / "killed" / ".overnight"
    driver = subprocess.Popen(words, env=environment, cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(lambda: len(list(commits.glob("*/commits/*.json"))) >= 2)
    children = psutil.Process(driver.pid).children(recursive=True)
    workers = [child for child in children if "tasks.worker:main" in child.cmdline()]
    assert len(workers) == 2
    if victim == "worker":
        workers[0].kill()
        assert driver.wait(timeout=200) == 0
    else:
        os.killpg(driver.pid, signal.SIGKILL) if victim == "group" else driver.kill()
        driver.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == [], "processes outlive their driver"
        done = {path.name: path.read_bytes() for path in commits.glob("*/commits/*.json")}
        assert overnight(*arguments, "--output", "killed/out").returncode == 0
        now = {path.name: path.read_bytes() for path in commits.glob("*/commits/*.json")}
        assert now.items() >= done.items(), "a committed shard was computed again"
    assert digest(tmp_path / "killed" / "out") == digest(tmp_path / "plain" / "out")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ended_while_planning_and_resumed(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    rows = [{"id": row, "text": f"Order {row % 40} has not arrived. " * 20} for row in range(30_000)]
    source = write_rows(tmp_path / "in.jsonl", rows)
    arguments = ["infer", "--input", source, "--config", config]
    words = program(*arguments, "--output", "ended/out")
    driver = subprocess.Popen(words, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("ended/.overnight/*/prefect/server.log")))
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    stdout, _ = driver.communicate(timeout=45)
    assert driver.returncode == (-number if number == signal.SIGKILL else 130)
    assert ("overnight infer" in stdout) == (number == signal.SIGTERM)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    (run,) = tmp_path.glob("ended/.overnight/*")
    assert not list(run.glob("plan/*.json")), "the plan was complete already"
    assert overnight(*arguments, "--output", "ended/out").returncode == 0
    assert overnight(*arguments, "--output", "plain/out").returncode == 0
    assert digest(tmp_path / "ended" / "out") == digest(tmp_path / "plain" / "out")
    for folder in ("plan", "commits"):
        planned = [{path.name for path in root.glob(f".overnight/*/{folder}/*")} for root in
                   (tmp_path / "ended", tmp_path / "plain")]  # fmt: skip
        assert planned[0] == planned[1]


def flow_runs(run: Path) -> list[tuple[str, str]]:
    """Flow and final state of each flow run that the run's own Prefect server has recorded."""
    with closing(sqlite3.connect(run / "prefect" / "prefect.db")) as database:
        query = "SELECT flow.name, flow_run.state_type FROM flow_run JOIN flow ON flow.id = flow_run.flow_id"
        return list(database.execute(query))


def test_what_is_wrong_with_the_input_ends_the_run_when_it_is_planned(overnight: Overnight, tmp_path: Path) -> None:
    source = tmp_path / "in.parquet"
    pq.write_table(pa.Table.from_pylist(list(messages(2000))), source)
    whole = source.read_bytes()
    source.write_bytes(whole[:100] + bytes(len(whole) // 2) + whole[100 + len(whole) // 2 :])
    done = overnight("infer", "--input", source, "--output", "out")
    assert done.returncode == 1
    assert "in.parquet" in done.stdout
    (run,) = tmp_path.glob(".overnight/*")
    assert flow_runs(run) == [("infer", "FAILED")]
    assert '"failed"' in (run / "events.jsonl").read_text().splitlines()[-1]


def test_the_workers_have_their_shards_before_the_flow_begins_and_its_state_is_recorded(
    overnight: Overnight, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(30)))
    assert overnight("infer", "--input", source, "--output", "out").returncode == 0
    (run,) = tmp_path.glob(".overnight/*")
    assert flow_runs(run) == [("infer", "COMPLETED")]
    times = {event["event"]: event["time"] for event in map(json.loads, (run / "events.jsonl").open())}
    with closing(sqlite3.connect(run / "prefect" / "prefect.db")) as database:
        ((begun,),) = database.execute("SELECT start_time FROM flow_run")
    assert times["planned"].partition("+")[0] < begun.replace(" ", "T")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_by_the_user(
    environment: dict[str, str], config: Path, tmp_path: Path, number: signal.Signals
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(5000)))
    words = program("infer", "--input", source, "--output", "out", "--config", config)
    words += ["--set", "sampling.max_tokens=200", "--set", "sampling.temperature=1"]
    # A shell that starts tests in the background has them ignore SIGINT, and their children too.
    driver = subprocess.Popen(
        words,
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    wait_for(lambda: list(tmp_path.glob(".overnight/*/attempts/*.json")))
    children = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(number)
    stdout, _ = driver.communicate(timeout=45)
    assert driver.returncode == 130
    assert "overnight infer" in stdout
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert '"interrupted"' in next(tmp_path.glob(".overnight/*/events.jsonl")).read_text().splitlines()[-1]


def test_in_eight_bits_the_sample_is_another_run_with_nearly_the_same_answers(
    overnight: Overnight, tmp_path: Path
) -> None:
    sample = ROOT / "data" / "sample"
    accuracy, runs = [], set()
    for method, words in (("none", "in float32"), ("fp8", "fp8 weights")):
        arguments = ["--input", sample / "messages.jsonl", "--model", MODEL, "--limit", "120", "--output", method]
        quantization = ["--set", f"model.quantization={method}", "--set", "workers.dp_degree=1"]
        done = overnight("infer", "--config", sample / "config.toml", *arguments, *quantization)
        assert done.returncode == 0
        assert words in done.stderr
        rows = read(tmp_path / method)
        accuracy.append(sum(row["output"] == row["expected"] for row in rows) / len(rows))
        runs.add(json.loads((tmp_path / method / "_manifest.json").read_text())["run"])
    assert len(runs) == 2
    assert accuracy[0] > 0.8
    assert accuracy[1] == pytest.approx(accuracy[0], abs=0.05)


def test_a_second_driver_is_refused(
    overnight: Overnight, environment: dict[str, str], config: Path, tmp_path: Path
) -> None:
    source = write_rows(tmp_path / "in.jsonl", list(messages(400)))
    words = program("infer", "--input", source, "--output", "out", "--config", config)
    with subprocess.Popen(words, env=environment, cwd=tmp_path) as driver:
        wait_for(lambda: list(tmp_path.glob(".overnight/*/lock")))
        second = overnight("infer", "--input", source, "--output", "out", timeout=30)
        assert second.returncode == 4
        driver.send_signal(signal.SIGTERM)
        assert driver.wait(timeout=60) == 130
