"""The doctor finds what is wrong, says what to do, and changes nothing."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.specifiers import SpecifierSet
from rich.console import Console

from data.errors import InputError
from tasks.check import Check
from tasks.cuda_versions import check_cuda, check_driver, compare
from tasks.doctor import checks, print_checks
from tasks.machine import Gpu, Gpus, check_filesystem, check_gpus, check_place, read_gpus
from tasks.model_check import check_fit, check_model
from tasks.settings import Settings
from tasks.versions import check_package, check_packages, read_pins

MODEL = Path(__file__).parents[2] / "data" / "models" / "messages-4m"
NO_GPU = Gpus((), None, None)
H200 = Gpu("NVIDIA H200", 139 << 30, 138 << 30)


def settings(tmp_path: Path, model: Path | None = MODEL) -> Settings:
    """Settings with a model, an input and an output."""
    paths = {"input": {"path": str(tmp_path / "in.jsonl")}, "output": {"path": str(tmp_path / "later" / "out")}}
    return Settings.model_validate(
        {**paths, "model": {"path": str(model)} if model else {}, "workers": {"dp_degree": 1}}
    )


def test_everything_is_looked_at_and_nothing_is_left_behind(tmp_path: Path) -> None:
    found = {check.name: check for check in checks(settings(tmp_path), lambda: "10 of 10 rows answered")}
    names = {"python", "torch", "prefect", "fastapi", "cuda", "cores", "memory", "disk", "filesystem", "open files"}
    assert names | {"model", "model size", "tokenizer", "dry run"} <= found.keys()
    assert [check for check in found.values() if check.state == "fail"] == []
    assert found["dry run"] == Check("dry run", "ok", "10 of 10 rows answered")
    assert list(tmp_path.iterdir()) == []


def test_the_dry_run_fails_with_its_reason(tmp_path: Path) -> None:
    def fail() -> str:
        raise InputError("column text is not there")

    last = list(checks(settings(tmp_path), fail))[-1]
    assert (last.state, last.found) == ("fail", "InputError: column text is not there")


def test_a_bad_model_fails_and_saves_the_dry_run(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    found = {check.name: check for check in checks(settings(tmp_path, folder), pytest.fail)}
    assert found["model"].state == "fail"
    assert "model.safetensors" in found["model"].found
    assert found["dry run"].state == "warn"


def test_no_model_is_a_warning(tmp_path: Path) -> None:
    assert [check.state for check in check_model(settings(tmp_path, None), NO_GPU)] == ["warn"]


def test_a_tokenizer_of_another_vocabulary_fails(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL, tmp_path / "model")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"vocab_size": 3072', '"vocab_size": 3000'))
    last = list(check_model(settings(tmp_path, folder), NO_GPU))[-1]
    assert (last.name, last.state) == ("tokenizer", "fail")


@pytest.mark.parametrize(("billions", "state"), [(50, "ok"), (66, "warn"), (75, "fail")])
def test_weights_against_the_memory_of_a_gpu(tmp_path: Path, billions: int, state: str) -> None:
    room = Gpus((Gpu("H", 160_000_000_000, 160_000_000_000),), "580", 13000)  # 144e9 with memory_fraction 0.9
    assert check_fit(settings(tmp_path), billions * 10**9, room).state == state


def test_weights_against_the_memory_of_this_machine(tmp_path: Path) -> None:
    assert check_fit(settings(tmp_path), 10**6, NO_GPU).state == "ok"
    check = check_fit(settings(tmp_path), 10**13, NO_GPU)
    assert check.state == "fail"
    assert "dp_degree" in check.advice


def test_pins_and_limits(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# tested\nRich==0.1  # old\n--extra-index-url x\nabsent==1; python_version < '3'\n")
    assert read_pins(constraints) == {"rich": SpecifierSet("==0.1")}
    assert read_pins(tmp_path / "none") == {}
    assert check_package("rich", SpecifierSet("==0.1")).state == "warn"
    assert check_package("rich", None).state == "ok"
    missing = check_package("no-such-package-here", None)
    assert (missing.state, missing.found) == ("fail", "not installed")


def test_a_version_that_prefect_cannot_work_with_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fastapi-0.155.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: fastapi\nVersion: 0.155.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = check_package("fastapi", None)
    assert (check.state, check.found) == ("fail", "0.155.0")
    assert "<0.151" in check.advice


def test_this_environment_passes() -> None:
    assert [check for check in check_packages() if check.state == "fail"] == []


def test_libraries_against_what_torch_was_built_with() -> None:
    assert compare("nccl", "2.28.9", "2.28.9").state == "ok"
    assert compare("cudnn", "9.19.0.56", "9.19.0").state == "ok"
    assert compare("cudnn", "9.19.0.56", "9.10.2").state == "warn"
    assert compare("nccl", "2.28.9", None).state == "fail"
    assert check_driver("13.0", 13000).state == "ok"
    assert check_driver("12.8", 12040).state == "ok"
    assert check_driver("13.0", 12080).state == "fail"


@pytest.mark.gpu
def test_cuda_of_this_machine() -> None:
    if not read_gpus().devices:
        pytest.skip("needs a GPU")
    assert [check for check in check_cuda(1, 13000) if check.state == "fail"] == []


def test_gpus_without_a_torch_that_can_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "version", SimpleNamespace(cuda=None))
    assert [check.state for check in check_cuda(2, 13000)] == ["fail"]
    assert [check.state for check in check_cuda(0, None)] == ["ok"]


def test_gpus_busy_fewer_or_hidden() -> None:
    busy = Gpu("NVIDIA H200", 139 << 30, 20 << 30)
    states = [check.state for check in check_gpus(Gpus((H200, busy), "580", 13000), wanted=4)]
    assert states == ["ok", "warn", "warn"]
    assert [check.state for check in check_gpus(Gpus((), "580", 13000), wanted=4)] == ["warn"]
    assert [check.state for check in check_gpus(NO_GPU, wanted=4)] == ["ok"]


def test_a_folder_that_cannot_be_written_fails() -> None:
    check = check_filesystem(Path("/proc"))
    assert check.state == "fail"
    assert "/proc" in check.found
    assert check.advice


def test_an_object_store_is_not_probed() -> None:
    assert [check.name for check in check_place("s3://bucket/out")] == ["disk"]


@pytest.mark.parametrize("width", [80, 120])
def test_failures_say_what_to_do_and_decide_the_verdict(width: int) -> None:
    stream = io.StringIO()
    found = [Check("disk", "ok", "free"), Check("torch", "fail", "2.1 [red]", "install 2.13 " + "x" * 100)]
    assert not print_checks(found, Console(file=stream, width=width))
    text = stream.getvalue()
    assert "FAIL  torch" in text
    assert "2.1 [red]" in text
    assert "install 2.13" in text
    assert text.splitlines()[-1] == "Not ready: 1 ok, 0 warnings, 1 failed"
    assert all(len(line) <= width for line in text.splitlines())
    assert print_checks(found[:1], Console(file=stream))


def test_looking_at_the_machine_imports_no_torch() -> None:
    code = "import sys, tasks.doctor; sys.exit('torch' in sys.modules or 'prefect' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
