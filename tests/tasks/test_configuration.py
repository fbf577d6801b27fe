"""Precedence of settings, and the one line a user gets for a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import InputError
from tasks.configuration import load_settings
from tasks.error_reference import ERRORS_PATH, errors_text
from tasks.reference import CONFIG_PATH, DOCUMENT_PATH, config_text, document_text
from tasks.settings import Settings, reference, set_explicitly


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("[sampling]\nmax_tokens = 10\ntemperature = 0.5\nseed = 1\n", encoding="utf-8")
    return path


def test_command_line_over_environment_over_file_over_default(config: Path) -> None:
    environment = {"OVERNIGHT_SAMPLING__TEMPERATURE": "0.7", "OVERNIGHT_SAMPLING__SEED": "2"}
    settings = load_settings(config, sets=["sampling.seed=3"], environment=environment)
    assert settings.sampling.seed == 3
    assert settings.sampling.temperature == 0.7
    assert settings.sampling.max_tokens == 10
    assert settings.sampling.top_p == 1.0


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("model.path=true", "model", "path", "true"),
        ("engine.amp=true", "engine", "amp", True),
        ("engine.deterministic=true", "engine", "deterministic", True),
        ("engine.deterministic=batch-invariant", "engine", "deterministic", "batch-invariant"),
        ("input.limit=7", "input", "limit", 7),
        ("input.columns=a,b", "input", "columns", ("a", "b")),
        ('sampling.stop=["\\n", "x"]', "sampling", "stop", ("\n", "x")),
        ("job.prompt={{ text }}", "job", "prompt", "{{ text }}"),
    ],
)
def test_set_reads_by_the_type_of_the_key(text: str, section: str, key: str, value: object) -> None:
    settings = load_settings(None, sets=[text], environment={})
    assert getattr(getattr(settings, section), key) == value


def test_a_prompt_may_be_a_list_of_messages() -> None:
    settings = load_settings(None, sets=['job.prompt=[{role = "user", content = "{{ text }}"}]'], environment={})
    assert isinstance(settings.job.prompt, tuple)
    assert settings.job.prompt[0].content == "{{ text }}"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["sampling.temprature=1"], ["sampling.temprature", "sampling.temperature", "--set"]),
        (["samplin.temperature=1"], ["[samplin]", "sampling"]),
        (["sampling.temperature=-1"], ["sampling.temperature", "greater than or equal to 0", "-1"]),
        (["sampling.temperature=nan"], ["sampling.temperature", "finite"]),
        (["sampling.max_tokens=many"], ["sampling.max_tokens", "many"]),
        (["job.kind=sing"], ["job.kind", "generate"]),
        (["engine.deterministic=maybe"], ["engine.deterministic", "batch-invariant"]),
        (["workers.tp_degree=2"], ["workers.tp_degree", "not supported yet"]),
        (["sampling.max_tokens"], ["section.key=value"]),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(sets: list[str], words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load_settings(None, sets=sets, environment={})
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


def test_a_wrong_environment_variable_is_named() -> None:
    with pytest.raises(InputError, match="OVERNIGHT_SAMPLING__TOPP"):
        load_settings(None, environment={"OVERNIGHT_SAMPLING__TOPP": "1"})


def test_a_wrong_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.toml does not exist"):
        load_settings(tmp_path / "absent.toml", environment={})
    broken = tmp_path / "broken.toml"
    broken.write_text("[sampling\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"broken\.toml is not valid TOML"):
        load_settings(broken, environment={})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[job]\nprompt = " + b"[" * 20_000 + b"]" * 20_000, "is not valid TOML"),
        (b"[sampling]\nseed = " + b"9" * 5000, "is not valid TOML"),
        ("[sampling]\nseed = 1".encode("utf-16"), "is not valid TOML"),
        (b"[sampling]\nseed = 1\nseed = 2", "is not valid TOML"),
        (b"sampling = 1", "[sampling] (from"),
        (b'[sampling]\n"a\\nb" = 1', r"unknown setting sampling.a\nb"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_settings(path, environment={})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_other_line_ends_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf[sampling]\r\nseed = 7\r\n")
    assert load_settings(path, environment={}).sampling.seed == 7


def test_only_what_was_given_overrides() -> None:
    given = Settings.model_validate({"sampling": {"seed": 5}, "job": {"schema": None}})
    assert set_explicitly(given) == {"sampling": {"seed": 5}, "job": {"schema": None}}


def test_the_written_reference_is_the_current_one() -> None:
    assert CONFIG_PATH.read_text(encoding="utf-8") == config_text(), "make format writes it"
    assert DOCUMENT_PATH.read_text(encoding="utf-8") == document_text(), "make format writes it"
    assert ERRORS_PATH.read_text(encoding="utf-8") == errors_text(), "make format writes it"


def test_the_default_file_gives_the_defaults() -> None:
    assert load_settings(CONFIG_PATH, environment={}) == Settings()
    assert all(setting.description for setting in reference())


def test_a_time_as_toml_writes_it_and_a_text_where_a_list_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[schedule]\ndeadline = 2030-01-01T06:00:00Z\n")
    assert load_settings(file, {}, (), {}).schedule.deadline == "2030-01-01T06:00:00+00:00"
    file.write_text("[schedule]\ndeadline = 2030-01-01T06:00:00\n")
    with pytest.raises(InputError, match=r"schedule\.deadline.*zone"):
        load_settings(file, {}, (), {})
    file.write_text('[sampling]\nstop = "x"\n')
    with pytest.raises(InputError, match=r'sampling\.stop: input should be a list, not "x"'):
        load_settings(file, {}, (), {})
