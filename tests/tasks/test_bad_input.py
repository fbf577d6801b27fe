"""What is wrong with files, settings or the model is one line that names it, before anything is started or written."""

from __future__ import annotations

import json
import os
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from data import parquet, streams
from data.errors import InputError
from data.exit_status import ExitStatus
from data.parquet import ParquetChunk
from tasks.configuration import load_settings
from tasks.job import Job, RunOptions, prepare
from tests.flows.conftest import MODEL
from tests.tasks.bad_inputs import FILES, LINE, one_text_repeated

SMALL = {"MAX_RATIO": 100, "RATIO_FROM": 1 << 20}


@pytest.fixture(autouse=True)
def small_caps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Bombs of megabytes are as good as bombs of terabytes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in SMALL.items():
        monkeypatch.setattr(streams, name, value)


def checked(place: Path, source: str, *sets: str, **sections: dict[str, Any]) -> Job:
    """What `overnight infer` checks before it starts anything."""
    given: dict[str, dict[str, Any]] = {
        "input": {"path": source},
        "output": {"path": str(place / "out")},
        "model": {"path": str(MODEL)},
        "job": {"prompt": [{"role": "user", "content": "{{ text }}"}]},
    }
    for section, values in sections.items():
        given[section] = {**given.get(section, {}), **values}
    if any(text.startswith("job.prompt") for text in sets) or given["job"]["prompt"] is None:
        del given["job"]["prompt"]
    if any(text.startswith("output.path") for text in sets):
        del given["output"]
    settings = load_settings(None, given, sets, environment={})
    return prepare(settings, RunOptions(), datetime.now(), "overnight infer")


def refused(place: Path, words: tuple[str, ...], source: str, *sets: str, **sections: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        checked(place, source, *sets, **sections)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert "\n" not in message
    assert caught.value.status is ExitStatus.REFUSED
    assert {path.name for path in place.iterdir()} & {"out", ".overnight"} == set()


def good(place: Path) -> str:
    (place / "good.jsonl").write_bytes(LINE)
    return str(place / "good.jsonl")


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path: Path, name: str) -> None:
    write, words = FILES[name]
    refused(tmp_path, words, write(tmp_path))


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = good(tmp_path)
    if os.geteuid() == 0:  # root may read everything: be told that it may not

        def denied(*_: Any, **__: Any) -> Any:
            raise PermissionError(13, "Permission denied", source)

        monkeypatch.setattr("data.sources.open", denied, raising=False)
    else:
        Path(source).chmod(0)
    refused(tmp_path, ("no permission to read", "good.jsonl"), source)


def test_a_parquet_bomb_decodes_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "RATIO_FROM", 1 << 26)
    monkeypatch.setattr(parquet, "STEP_BYTES", 1 << 24)
    job, largest = checked(tmp_path, one_text_repeated(tmp_path)), 0

    def read() -> None:
        nonlocal largest
        for chunk in job.dataset.chunks():
            assert isinstance(chunk, ParquetChunk)
            largest = max(largest, chunk.batch.nbytes)

    with pytest.raises(InputError, match=r"x\.parquet decodes to more than 1000 times its .* bytes.*bomb"):
        read()
    assert 0 < largest < 48 << 20


SETTINGS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "an unknown key": (["sampling.temprature=1"], ("sampling.temprature", "did you mean sampling.temperature?")),
    "an unknown section": (["samplin.top_p=1"], ("[samplin]", "did you mean sampling?")),
    "an impossible value": (["sampling.top_p=2"], ("sampling.top_p", "less than or equal to 1", "not 2")),
    "a negative token limit": (["sampling.max_tokens=-1"], ("sampling.max_tokens", "greater than or equal to 1")),
    "a token limit of zero": (["sampling.max_tokens=0"], ("sampling.max_tokens", "greater than or equal to 1")),
    "a token limit beyond every model": (
        ["sampling.max_tokens=1000000000"],
        ("sampling.max_tokens", "less than or eq"),
    ),
    "a placeholder that is none": (["output.path=out/{day}"], ("output.path", "{day} is neither {date} nor {run}")),
    "a fraction of a token": (["sampling.max_tokens=1.5"], ("sampling.max_tokens", "integer", "1.5")),
    "a negative row limit": (["input.limit=-1"], ("input.limit", "greater than or equal to 0")),
    "NaN as temperature": (["sampling.temperature=nan"], ("sampling.temperature", "finite")),
    "an infinite temperature": (["sampling.temperature=inf"], ("sampling.temperature", "finite")),
    "NaN as a budget": (["output.error_budget=nan"], ("output.error_budget", "finite")),
    "a template that is none": (["job.prompt={{ text"], ("job.prompt", "line 1 is not valid Jinja")),
    "an undefined variable": (["job.prompt={{ txet }}"], ("'txet', which the input lacks: it has text",)),
    "a filter that is none": (["job.prompt={{ text | uppr }}"], ("job.prompt", "uppr")),
    "an include": (["job.prompt={% include 'x' %}"], ("job.prompt", "cannot include")),
    "a column of ids that is not there": (["job.prompt_ids=ids"], ("'ids', which the input lacks: it has text",)),
    "a column to publish that is not there": (["output.include=txt"], ("output.include names 'txt'", "text")),
    "a column to compare that is not there": (["job.expected=label"], ("job.expected = 'label'", "it has text")),
    "a priority of no column": (["schedule.priority=scroe"], ("schedule.priority", "'scroe'", "it has text")),
    "a JSON schema that is not JSON": (["job.schema={"], ("job.schema", "(from --set)")),
    "a JSON schema": (['job.schema={type = "objekt"}'], ("job.schema", "not supported yet")),
    "an adapter": (["model.adapter=folder"], ("model.adapter", "not supported yet")),
    "an empty stop text": (['sampling.stop=[""]'], ("sampling.stop", "an empty stop text")),
    "an output inside the input": (["output.path=IN/out"], ("output.path", "lies inside input.path")),
    "an output URL of another scheme": (
        ["output.path=ftp://bucket/out"],
        ("output.path has the scheme ftp://", "a local path or s3://"),
    ),
    "an output URL without a bucket": (["output.path=s3:///out"], ("output.path names no bucket", "s3://BUCKET")),
    "an output with a NUL": (["output.path=a\0b"], ("output.path holds a NUL character",)),
    "an output that is too long": (["output.path=" + "o" * 300], ("output.path", "cannot be used: File name too long")),
    "an output below a file": (["output.path=IN/x.jsonl/out"], ("output.path", "cannot be used: Not a directory")),
    "a prompt that is not UTF-8": (["job.prompt=\udcff"], ("job.prompt is not valid UTF-8",)),
    "a list that does not end": (['sampling.stop=["a'], ("sampling.stop", "is not a list as TOML writes it")),
    "a number of 5,000 digits": (["sampling.seed=" + "9" * 5000], ("sampling.seed", "exceeded maximum size")),
    "a schema nested without end": (["job.schema=" + "{a=" * 5000], ("job.schema", "valid dictionary")),
    "a key of two lines": (["sampling.a\nb=1"], ("unknown setting sampling.a\\nb",)),
    "a deadline without a zone": (["schedule.deadline=2030-01-01T00:00"], ("schedule.deadline", "zone")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(tmp_path: Path, name: str) -> None:
    sets, words = SETTINGS[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.jsonl").write_bytes(LINE)
    refused(tmp_path, words, str(tmp_path / "in"), *[text.replace("IN", str(tmp_path / "in")) for text in sets])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model, to be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(MODEL, folder)
    return folder


def test_a_model_whose_files_do_not_belong_together(tmp_path: Path, model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    words = ("the tokenizer gives ids up to", "the model has 100", "do not belong together")
    refused(tmp_path, words, good(tmp_path), model={"path": str(model)})


def header(text: bytes, tensors: int = 0) -> bytes:
    return len(text).to_bytes(8, "little") + text + bytes(tensors)


def test_weights_that_are_not_whole(tmp_path: Path, model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    for damaged, words in (
        (whole[:-100], "model.safetensors is truncated or damaged"),
        ((1 << 40).to_bytes(8, "little") + whole[8:], "its header is longer than the file or 100 MiB"),
        (b"\x80\x02pickle", "model.safetensors is not a whole safetensors file"),
        (header(b"[" * 200_000 + b"]" * 200_000), "invalid safetensors header"),
        (header(b"{}"), "model.safetensors holds no tensors"),
        (header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}'), "invalid safetensors header"),
        (header(b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}', 4), "invalid safetensors header"),
        (header(b'{"a": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}', 4), "invalid safetensors header"),
    ):
        weights.write_bytes(damaged)
        refused(tmp_path, (words,), good(tmp_path), model={"path": str(model)})


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_model_files_that_are_nested_without_end(tmp_path: Path, model: Path, name: str) -> None:
    (model / name).write_bytes(b"[" * 200_000 + b"]" * 200_000)
    refused(tmp_path, (name, "not"), good(tmp_path), model={"path": str(model)})


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json"])
def test_model_files_that_would_be_waited_for(tmp_path: Path, model: Path, name: str) -> None:
    (model / name).unlink()
    os.mkfifo(model / name)
    refused(tmp_path, (f"{name} is not a regular file",), good(tmp_path), model={"path": str(model)})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"max_position_embeddings": 0}, "gives a context length of 0"),
        ({"rope_scaling": {"type": "linear", "factor": 1e999}}, "gives no context length that can be read"),
        ({"model_type": "roberta", "pad_token_id": "x"}, "gives no context length that can be read"),
        ({"vocab_size": "x"}, "gives no vocab_size"),
    ],
)
def test_a_model_configuration_that_makes_no_sense(
    tmp_path: Path, model: Path, values: dict[str, Any], words: str
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | values))
    refused(tmp_path, ("config.json", words), good(tmp_path), model={"path": str(model)})


def test_weights_whose_hash_is_not_the_recorded_one(tmp_path: Path, model: Path) -> None:
    hub = tmp_path / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    recorded = hub / "blobs" / ("0" * 64)
    shutil.move(model / "model.safetensors", recorded)
    shutil.copytree(model, hub / "snapshots" / "main")
    (hub / "snapshots" / "main" / "model.safetensors").symlink_to(f"../../blobs/{recorded.name}")
    words = ("model.safetensors is damaged: its sha256 is not the one that the hub records",)
    refused(tmp_path, words, good(tmp_path), model={"path": str(hub / "snapshots" / "main")})


def test_what_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + LINE.replace(b"\n", b"\r\n") + LINE.strip())
    assert checked(tmp_path, str(tmp_path / "x.jsonl")).run_id
    (tmp_path / "y.jsonl").touch()
    assert checked(tmp_path, str(tmp_path / "y.jsonl")).run_id
