"""A verdict on a model is read by the next process, and only for what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, Qwen2Config

from engine import attention
from engine.cuda import verdicts
from engine.cuda.recipe import choose_trunk
from engine.random_model import build_random_model
from engine.settings import EngineSettings

NAME = "0" * 64
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where verdicts of this test are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "overnight" / "recipes"


def build(device: torch.device, dtype: torch.dtype = torch.float32, **sizes: Any) -> Any:
    return build_random_model(Qwen2Config(**SIZES | sizes), dtype=dtype, device=device)


@pytest.mark.parametrize("verdict", [True, False])
def test_a_verdict_is_read_again(home: Path, verdict: bool) -> None:
    assert verdicts.recall(NAME) is None
    verdicts.remember(NAME, not verdict)
    verdicts.remember(NAME, verdict)
    assert verdicts.recall(NAME) is verdict
    assert [path.name for path in home.iterdir()] == [f"{NAME}.json"]


@pytest.mark.parametrize("content", [b"", b"\xff", b"tru", b"1", b'{"verdict": true}'])
def test_an_unreadable_verdict_is_none(home: Path, content: bytes) -> None:
    home.mkdir(parents=True)
    (home / f"{NAME}.json").write_bytes(content)
    assert verdicts.recall(NAME) is None
    verdicts.remember(NAME, True)
    assert verdicts.recall(NAME) is True


@pytest.mark.parametrize("place", ["/dev/null/nowhere", "/proc"])
def test_nowhere_to_write_is_no_error(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    verdicts.remember(NAME, True)
    assert verdicts.recall(NAME) is None


def test_without_a_setting_it_is_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    verdicts.remember(NAME, True)
    assert (tmp_path / "me" / ".cache" / "overnight" / "recipes" / f"{NAME}.json").exists()


def test_a_name_is_of_all_that_the_verdict_depends_on(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(device, vocab_size=50)
    name = verdicts.name_of("check", model)
    same = build(device, vocab_size=50)
    same.config._name_or_path = "/another/folder"
    assert verdicts.name_of("check", same) == name
    bare = AutoModel.from_config(model.config, attn_implementation=attention.NAME)
    others = [
        verdicts.name_of("another", model),
        verdicts.name_of("check", build(device, vocab_size=51)),
        verdicts.name_of("check", build(device, torch.float16, vocab_size=50)),
        verdicts.name_of("check", bare),
    ]
    for library in (verdicts.torch, verdicts.transformers, verdicts.triton):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "0")
            others.append(verdicts.name_of("check", model))
    assert len({name, *others}) == 1 + len(others)


def test_a_check_is_remembered(device: torch.device) -> None:
    model = build(device, vocab_size=52)
    assert choose_trunk(model, EngineSettings())
    assert verdicts.recall(verdicts.name_of("_same_hidden", model)) is True


def test_a_remembered_check_is_not_made_again(device: torch.device) -> None:
    model = build(device, vocab_size=53)
    verdicts.remember(verdicts.name_of("_same_hidden", model), False)
    assert not choose_trunk(model, EngineSettings())
