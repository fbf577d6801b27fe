"""Where the settings of a run come from: command line over environment over configuration file over default.

Whatever is wrong becomes one line that names the setting, where it was set and what would be right, before anything is
started. What the settings are is the business of tasks.settings.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from data.errors import InputError, one_line
from tasks.settings import Settings, reference

_PASSWORD = re.compile(r"://[^/@\s]*@")
ENVIRONMENT_PREFIX = "OVERNIGHT_"
_PATHS = ("path", "dataset", "output", "promote", "reference")


def load_settings(
    config: Path | None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    sets: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """The settings of a run.

    Args:
        config: a TOML file, or None for defaults alone.
        overrides: values of named command-line options, by section and key.
        sets: `section.key=value` texts, each read by the key's type; later ones win.
        environment: os.environ unless given.

    Raises:
        InputError: a key or value is wrong; the message names it and where it was set.
    """
    merged: dict[str, dict[str, Any]] = {}
    sources: dict[str, str] = {}
    layers = [
        (str(config), _read_file(config) if config else {}),
        ("environment", dict(_from_environment(os.environ if environment is None else environment))),
        ("--set", _from_sets(sets)),
        ("command line", overrides or {}),
    ]
    for origin, layer in layers:
        for section, values in layer.items():
            _check_section(section, values, origin)
            for key, value in values.items():
                _check_key(section, key, origin)
                merged.setdefault(section, {})[key] = value
                sources[f"{section}.{key}"] = origin
    return _validate(merged, sources)


def _validate(merged: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str]) -> Settings:
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise InputError("; ".join(_explain(problem, sources) for problem in error.errors())) from None
    for setting in reference():
        value = merged.get(setting.section, {}).get(setting.key, setting.default)
        _check_text(setting.name, value, setting.key in _PATHS)
        if not setting.built and value != setting.default:
            raise InputError(
                f"{setting.name} = {value!r} (from {sources[setting.name]}) is not supported yet: leave it unset"
            )
    return settings


def _check_text(name: str, value: Any, is_path: bool) -> None:
    """InputError for text that no file name, or no prompt, can hold: the command line and Python let it through."""
    if isinstance(value, str):
        if is_path and "\0" in value:
            raise InputError(f"{name} holds a NUL character, which no path can have")
        if not is_path and any("\ud800" <= character <= "\udfff" for character in value):
            raise InputError(f"{name} is not valid UTF-8")
    elif isinstance(value, Mapping):
        for inner in (*value.keys(), *value.values()):
            _check_text(name, inner, is_path)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_text(name, inner, is_path)


def _explain(problem: Any, sources: Mapping[str, str]) -> str:
    location = [str(part) for part in problem["loc"]]
    message = str(problem["msg"]).removeprefix("Value error, ").replace("a valid tuple", "a list")
    name = ".".join(location[:2])
    if len(location) < 2:
        return message
    origin = sources.get(name)
    value = _PASSWORD.sub("://...@", json.dumps(problem["input"], default=str))
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f"{name}: {message[0].lower()}{message[1:]}, not {shown}" + (f" (from {origin})" if origin else "")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"configuration file {path} does not exist") from None
    except (ValueError, RecursionError) as error:  # ValueError: not TOML, not UTF-8, an integer of too many digits
        raise InputError(f"configuration file {path} is not valid TOML: {error}") from None
    except OSError as error:
        raise InputError(f"configuration file {path} cannot be read: {error.strerror}") from None


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    layer: dict[str, dict[str, Any]] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or "__" not in variable:
            continue
        section, _, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        _check_section(section, {}, f"environment variable {variable}")
        layer.setdefault(section, {})[key] = _read_value(section, key, text, f"environment variable {variable}")
    yield from layer.items()


def _from_sets(sets: Sequence[str]) -> dict[str, dict[str, Any]]:
    layer: dict[str, dict[str, Any]] = {}
    for text in sets:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot):
            raise InputError(f"--set {text!r} is not of the form section.key=value")
        _check_section(section, {}, "--set")
        layer.setdefault(section, {})[key] = _read_value(section, key, value, "--set")
    return layer


def _check_section(section: str, values: Any, origin: str) -> None:
    if section not in Settings.model_fields:
        near = _nearest(section, Settings.model_fields)
        raise InputError(f"unknown section [{one_line(section)}] (from {origin}){near}")
    if not isinstance(values, Mapping):
        raise InputError(f"[{section}] (from {origin}) is a section, not a value")


def _check_key(section: str, key: str, origin: str) -> None:
    names = [setting.name for setting in reference()]
    if f"{section}.{key}" not in names:
        name = f"{section}.{key}"
        raise InputError(f"unknown setting {one_line(name)} (from {origin}){_nearest(name, names)}")


def _nearest(name: str, names: Any) -> str:
    near = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f": did you mean {near[0]}?" if near else ""


def _read_value(section: str, key: str, text: str, origin: str) -> Any:
    """A text from the command line or environment, read by its key's type: a string as it is, all else as TOML."""
    _check_key(section, key, origin)
    annotation = next(setting.annotation for setting in reference() if setting.name == f"{section}.{key}")
    kinds = [kind for kind in _alternatives(annotation) if kind is not NoneType]
    takes_text = any(kind is str or get_origin(kind) is Literal for kind in kinds)
    structured = any(get_origin(kind) in (tuple, dict) for kind in kinds)
    if takes_text and not (structured and text.lstrip().startswith("[")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        if structured and text.lstrip().startswith("["):
            raise InputError(f'{section}.{key} (from {origin}) is not a list as TOML writes it: ["a", "b"]') from None
        if any(get_origin(kind) is tuple for kind in kinds):
            return [part.strip() for part in text.split(",") if part.strip()]
        return text


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
