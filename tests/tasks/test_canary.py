"""Planted corruption against real worker processes: none of them gets a row."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from data.run_folder import RunFolder
from engine.supervisor import Child
from tasks.canary import Expected
from tasks.canary_records import Records, outvoted, remember
from tasks.configuration import load_settings
from tasks.job import Job, RunOptions, prepare
from tasks.worker_order import WorkerOrder
from tests.flows.conftest import MODEL, ROOT

Start = Callable[..., dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be damaged."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "overnight" / "canaries"


def planned(folder: Path, model: Path, **job: Any) -> Job:
    source = folder / "in.parquet"
    if not source.exists():
        pq.write_table(pa.Table.from_pylist([{"text": "Where is my parcel?"}]), source)
    prompt = [{"role": "user", "content": "{{ text }}"}]
    given = {
        "input": {"path": str(source)},
        "output": {"path": str(folder / "out")},
        "job": job or {"prompt": prompt},
        "model": {"path": str(model)},
    }
    return prepare(load_settings(None, given, ()), RunOptions(), datetime.now(), "overnight infer")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a real worker of a job and give its first message."""
    children: list[Child] = []

    def first_message(job: Job, run: str = "run", worker: int = 0, workers: int = 1, **expected: Any) -> dict[str, Any]:
        folder = RunFolder.create(tmp_path / run, job.identity)
        log = tmp_path / f"{len(children)}.log"
        child = Child("tasks.worker:main", environment={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, log=log)
        children.append(child)
        order = WorkerOrder(
            worker=worker,
            run=folder.path,
            settings=job.settings,
            device="cpu",
            threads=1,
            expected=Expected.of(job.checkpoint, "the machine of the tests", workers=workers).model_copy(
                update={"worker": worker, **expected}
            ),
        )
        child.send(order.to_message())
        assert wait([child.connection], 120)
        message = child.receive()
        assert message is not None, log.read_text()
        return message

    yield first_message
    for child in children:
        child.end()


def completed(run: Path) -> None:
    remember(RunFolder.open(run))


def flip_a_byte(model: Path) -> None:
    """The lowest bit of one weight, which no answer would tell, with size, times and inode as they were."""
    path = model / "model.safetensors"
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(-1004, os.SEEK_END)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("kind", ["generate", "classify", "score", "embed"])
def test_a_sound_worker_is_ready_again_and_again(
    start: Start, tmp_path: Path, model: Path, cache: Path, kind: str
) -> None:
    jobs: dict[str, dict[str, Any]] = {
        "generate": {},
        "classify": {
            "kind": "classify",
            "choices": ["yes", "no"],
            "prompt": [{"role": "user", "content": "{{ text }}"}],
        },
        "score": {"kind": "score", "column": "text"},
        "embed": {"kind": "embed", "column": "text"},
    }
    job = planned(tmp_path, model, **jobs[kind])
    assert [start(job, run)["event"] for run in ("run", "run", "another")] == ["ready"] * 3
    assert not list(cache.glob("weights-*")), "a run that is not completed proves nothing to later ones"
    completed(tmp_path / "run")
    for folder in (tmp_path / "run" / "canaries", tmp_path / "another" / "canaries", cache):
        assert len(list(folder.glob("weights-*"))) == len(list(folder.glob("answers-*"))) == 1
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_flipped_byte_between_two_workers_of_a_run(start: Start, tmp_path: Path, model: Path) -> None:
    job = planned(tmp_path, model)
    assert start(job)["event"] == "ready"
    flip_a_byte(model)
    refused = start(job)
    assert (refused["event"], refused["certain"]) == ("refused", True)
    assert "the weights in" in refused["message"]
    assert "are damaged" in refused["message"]


def test_a_flipped_byte_between_two_runs_whose_digests_are_remembered(
    start: Start, tmp_path: Path, model: Path
) -> None:
    assert start(planned(tmp_path, model))["event"] == "ready"
    completed(tmp_path / "run")
    flip_a_byte(model)
    job = planned(tmp_path, model)  # the digest is the one that is remembered
    refused = start(job, "another")
    assert (refused["event"], refused["certain"]) == ("refused", True)
    assert "are damaged" in refused["message"]
    flip_a_byte(model)
    assert start(job, "another")["event"] == "ready", "the run goes on once the sound file is back"


def test_a_layer_that_is_not_numbers(start: Start, tmp_path: Path, model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    name = next(name for name in sorted(tensors) if "layers.1." in name)
    tensors[name] = tensors[name] * float("nan")
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    for kind in ({}, {"kind": "embed", "column": "text"}):
        refused = start(planned(tmp_path, model, **kind), f"run-{len(kind)}")
        assert refused["event"] == "refused"
        assert "canary prompts with nan" in refused["message"]


def test_another_chat_template_since_the_plan(start: Start, tmp_path: Path, model: Path) -> None:
    job = planned(tmp_path, model)
    assert start(job)["event"] == "ready"
    assert job.checkpoint.chat_template is not None
    (model / "chat_template.jinja").write_text("### " + job.checkpoint.chat_template)
    refused = _refused_after(start, job)
    assert "chat template, token ids of messages" in refused


def test_a_tokenizer_whose_ids_are_swapped_since_the_plan(start: Start, tmp_path: Path, model: Path) -> None:
    job = planned(tmp_path, model)
    path = model / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(state))
    refused = _refused_after(start, job)
    assert "(tokenizer, token ids, token ids of messages)" in refused


def test_a_tokenizer_that_was_swapped_before_the_plan_is_warned_of_once(
    start: Start, tmp_path: Path, model: Path
) -> None:
    assert start(planned(tmp_path, model))["event"] == "ready"
    path = model / "tokenizer.json"
    state = json.loads(path.read_text())
    vocabulary = state["model"]["vocab"]
    vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]
    path.write_text(json.dumps(state))
    warned = start(planned(tmp_path, model), "another")
    assert warned["event"] == "warning"
    assert "was used with another tokenizer before" in warned["message"]
    assert "fetch the model again" in warned["message"]
    assert "--fresh" in warned["message"]
    assert start(planned(tmp_path, model), "third")["event"] == "ready"


def _refused_after(start: Start, job: Job) -> str:
    """The message of a worker that finds other files than `job` was planned with."""
    refused = start(job)
    assert (refused["event"], refused["certain"]) == ("refused", True)
    assert "has changed since the run was planned" in refused["message"]
    return str(refused["message"])


def test_answers_that_are_not_those_of_before(start: Start, tmp_path: Path, model: Path) -> None:
    """What a wrong kernel or a faulty device does: the files and the bits are right, the answers are not."""
    job = planned(tmp_path, model)
    assert start(job)["event"] == "ready"
    (record,) = (tmp_path / "run" / "canaries").glob("answers-*.json")
    content = json.loads(record.read_text())
    content["answers"][0]["tokens"][0] += 1
    record.write_text(json.dumps(content))
    refused = start(job)
    assert (refused["event"], refused["certain"]) == ("refused", False)
    assert "the device of this worker" in refused["message"]


def test_a_device_of_another_name_is_not_held_to_the_answers_of_the_first(
    start: Start, tmp_path: Path, model: Path
) -> None:
    job = planned(tmp_path, model)
    assert start(job, machine="Turin")["event"] == "ready"
    (record,) = (tmp_path / "run" / "canaries").glob("answers-*.json")
    content = json.loads(record.read_text())
    content["answers"][0]["tokens"][0] += 1  # as if the first one had rounded otherwise
    record.write_text(json.dumps(content))
    assert start(job, machine="Genoa")["event"] == "ready"
    assert start(job, machine="Turin")["event"] == "refused"


def test_a_cache_that_cannot_be_written_costs_one_comparison_only(
    start: Start, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert start(planned(tmp_path, model))["event"] == "ready"


def test_weights_that_were_only_touched_or_copied_are_the_same(start: Start, tmp_path: Path, model: Path) -> None:
    job = planned(tmp_path, model)
    outline = Expected.of(job.checkpoint, "").outline
    path = model / "model.safetensors"
    shutil.copy(path, tmp_path / "copy")
    (tmp_path / "copy").rename(path)
    os.utime(path, ns=(0, 0))
    assert Expected.of(job.checkpoint, "").outline != outline
    assert start(job, outline=outline)["event"] == "ready"
    flip_a_byte(model)
    refused = start(job, outline=outline)
    assert (refused["event"], refused["certain"]) == ("refused", True)
    assert "(weights)" in refused["message"]


def test_most_workers_of_a_run_outvote_a_record_of_the_cache(
    start: Start, tmp_path: Path, model: Path, cache: Path
) -> None:
    job = planned(tmp_path, model)
    assert start(job)["event"] == "ready"
    completed(tmp_path / "run")
    (record,) = cache.glob("weights-*.json")
    record.write_text('{"sum": "of a load that went wrong"}')
    refused = start(job, "another", 0, 2)
    assert (refused["event"], refused["certain"]) == ("refused", False)
    assert start(job, "another", 0, 2)["event"] == "refused", "a device is not believed more if it is asked twice"
    warned = start(job, "another", 1, 2)
    assert warned["event"] == "warning"
    assert "most workers contradict" in warned["message"]
    assert start(job, "another", 0, 2)["event"] == "ready"


def test_one_worker_never_outvotes(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    ours = Records(tmp_path / "records", tmp_path / "tmp")
    assert not outvoted(ours, "weights-a", {"sum": "b"}, 0, 1)
    assert [outvoted(ours, "weights-c", {"sum": "b"}, worker, 4) for worker in range(4)] == [False, False, True, True]


def test_a_damaged_record_in_the_cache_refuses_nobody(start: Start, tmp_path: Path, model: Path, cache: Path) -> None:
    assert start(planned(tmp_path, model))["event"] == "ready"
    completed(tmp_path / "run")
    for path in cache.glob("*.json"):
        path.write_text("[" if path.name.startswith("weights") else "[1]")
    (next(iter(cache.glob("files-*"))).parent / "files-x.json").write_text("{}")
    path = model / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert start(planned(tmp_path, model), "another")["event"] == "ready"


def test_the_cache_keeps_so_many_records(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    records = Records(tmp_path / "records", tmp_path / "records")
    for number in range(5):
        records.replace(f"answers-{number}", {"a": number})
        os.utime(tmp_path / "records" / f"answers-{number}.json", (number, number))
    records.prune(3)
    assert sorted(path.stem for path in records.folder.iterdir()) == ["answers-2", "answers-3", "answers-4"]
