"""Code that a checkpoint or a dataset brings is never executed: each would leave a marker file if it were."""

from __future__ import annotations

import json
import pickle
import shutil
from datetime import datetime
from pathlib import Path

import pytest
import torch

from data.checkpoint import Checkpoint
from data.dataset import Dataset
from data.errors import InputError
from data.settings import InputSettings
from engine.model import load_model
from tasks.configuration import load_settings
from tasks.engines import build_engine
from tasks.job import RunOptions, prepare
from tests.flows.conftest import MODEL

CPU = torch.device("cpu")


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "executed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def test_the_bomb_would_go_off(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.ckpt", "model.safetensors", "extra.safetensors"]
)
def test_a_pickled_checkpoint_is_refused_unopened(model: Path, marker: Path, name: str) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(InputError, match=r"pickle|whole safetensors"):
        Checkpoint.open(str(model))
    with pytest.raises((ValueError, OSError)):  # also where nobody has looked at the files before
        load_model(model, dtype=torch.float32, device=CPU)
    assert not marker.exists()


def test_pickles_beside_safetensors_are_left_alone(model: Path, marker: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "tokenizer.pkl"):
        (model / name).write_bytes(pickle.dumps(Bomb(marker)))
    Checkpoint.open(str(model)).tokenizer()
    load_model(model, dtype=torch.float32, device=CPU)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["rows.pkl", "rows.jsonl", "rows.parquet", "rows"])
def test_a_pickled_dataset_is_refused_unopened(tmp_path: Path, marker: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps([Bomb(marker)]))
    with pytest.raises(InputError, match=r"pickle|is not"):
        Dataset.open(InputSettings(path=str(tmp_path / name)))
    assert not marker.exists()


@pytest.fixture
def with_code(model: Path, marker: Path) -> Path:
    """A model whose folder brings its own classes."""
    config = json.loads((model / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoModel": "own.Model"}
    config |= {"model_type": "own", "auto_map": classes}
    (model / "config.json").write_text(json.dumps(config))
    kind = next(iter(json.loads((MODEL / "config.json").read_text())["architectures"])).removesuffix("ForCausalLM")
    (model / "own.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        f"from transformers import {kind}Config, {kind}ForCausalLM\n"
        f"class Config({kind}Config):\n    model_type = 'own'\n"
        f"class Model({kind}ForCausalLM):\n    config_class = Config\n"
    )
    tokenizer = json.loads((model / "tokenizer_config.json").read_text())
    tokenizer["auto_map"] = {"AutoTokenizer": ["own.Tokenizer", None]}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return model


def test_a_models_own_code_is_not_run(with_code: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(with_code.parent / "modules"))
    checkpoint = Checkpoint.open(str(with_code))
    checkpoint.tokenizer().encode_batch(["text"], special=True)
    checkpoint.digests()
    with pytest.raises((ValueError, OSError)):
        load_model(with_code, dtype=torch.float32, device=CPU)
    assert not marker.exists()


def test_code_beside_a_known_architecture_is_not_run_either(
    with_code: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(with_code.parent / "modules"))
    config = json.loads((MODEL / "config.json").read_text())
    (with_code / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "own.Model"}}))
    code = (with_code / "own.py").read_text()
    (with_code / "own.py").write_text(code.replace("    config_class = Config\n", "    pass\n"))
    load_model(with_code, dtype=torch.float32, device=CPU)
    assert not marker.exists(), "the architecture's own class answers"
    load_model(with_code, dtype=torch.float32, device=CPU, trust_remote_code=True)
    assert marker.exists(), "the test would prove nothing"


def test_a_worker_does_not_run_it_either(with_code: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(with_code.parent / "modules"))
    given = {"model": {"path": str(with_code)}, "job": {"prompt": "{{ text }}"}}
    with pytest.raises((ValueError, OSError)):
        build_engine(
            load_settings(None, given, (), {}), Checkpoint.open(str(with_code)), "cpu", torch.get_num_threads()
        )
    assert not marker.exists()


def test_a_models_own_code_runs_where_it_is_trusted(
    with_code: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(with_code.parent / "modules"))
    load_model(with_code, dtype=torch.float32, device=CPU, trust_remote_code=True)
    assert marker.exists(), "the other test would prove nothing"


def test_trusted_code_is_part_of_what_makes_a_run(with_code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(with_code.parent / "cache"))
    (with_code.parent / "in.jsonl").write_text('{"text": "hello"}\n')

    def run_id(trusted: bool) -> str:
        given = {
            "input": {"path": str(with_code.parent / "in.jsonl")},
            "output": {"path": str(with_code.parent / "out")},
            "model": {"path": str(with_code), "trust_remote_code": trusted},
            "job": {"prompt": "{{ text }}"},
        }
        return prepare(load_settings(None, given, (), {}), RunOptions(), datetime.now(), "overnight infer").run_id

    before = {trusted: run_id(trusted) for trusted in (False, True)}
    with (with_code / "own.py").open("a") as file:
        file.write("# changed\n")
    assert run_id(False) == before[False]
    assert len({run_id(True), *before.values()}) == 3
