"""The reference of all settings, made from their definitions: for `--help`, config.toml and docs/configuration.md.

`python -m tasks.reference` writes these files and docs/errors.md; a test holds them against the definitions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from tasks.error_reference import ERRORS_PATH, errors_text
from tasks.settings import Setting, Settings, reference

CONFIG_PATH = Path(__file__).parent.parent / "config.toml"
DOCUMENT_PATH = Path(__file__).parent.parent / "docs" / "configuration.md"

CONFIG_HEAD = """\
# Settings of overnight, all at their defaults. A setting is read from the command line (--set section.key=value)
# before the environment (OVERNIGHT_SECTION__KEY) before this file. A commented line has no default.
"""

DOCUMENT_HEAD = """\
# Settings

Command line (`--set section.key=value`, or the named options) over environment (`OVERNIGHT_SECTION__KEY`) over
configuration file (`--config`, `./config.toml` if not given) over default. An unknown key is an error that suggests the
nearest one. Settings marked "not yet" are accepted at their default alone.
"""


def help_lines() -> Iterator[tuple[str, str]]:
    """Name with default, and description, of every setting."""
    for setting in reference():
        note = "" if setting.built else " (not yet)"
        yield f"{setting.name} = {_shown(setting.default)}", setting.description + note


def config_text() -> str:
    """The text of config.toml: every setting with its description as a comment."""
    lines = [CONFIG_HEAD.rstrip()]
    section = ""
    for setting in reference():
        if setting.section != section:
            section = setting.section
            lines += ["", f"# {_section_line(section)}", f"[{section}]"]
        note = "" if setting.built else " (not yet)"
        lines.append(f"# {setting.description}{note}")
        unset = setting.default is None
        lines.append(f"# {setting.key} =" if unset else f"{setting.key} = {json.dumps(setting.default)}")
    return "\n".join(lines) + "\n"


def document_text() -> str:
    """The text of docs/configuration.md: one table for each section."""
    lines = [DOCUMENT_HEAD.rstrip()]
    section = ""
    for setting in reference():
        if setting.section != section:
            section = setting.section
            lines += ["", f"## [{section}]", "", _section_line(section), ""]
            lines += ["| key | type | default | what it does |", "|---|---|---|---|"]
        note = "" if setting.built else " Not yet."
        kind = _type(setting).replace("|", "\\|")
        lines.append(f"| `{setting.key}` | {kind} | `{_shown(setting.default)}` | {setting.description}{note} |")
    return "\n".join(lines) + "\n"


def _section_line(section: str) -> str:
    model: Any = Settings.model_fields[section].annotation
    return str(model.__doc__).strip().splitlines()[0]


def _shown(default: Any) -> str:
    return "unset" if default is None else json.dumps(default)


def _type(setting: Setting) -> str:
    return _type_name(setting.annotation)


def _type_name(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, UnionType):
        return " or ".join(_type_name(argument) for argument in arguments if argument is not NoneType)
    if origin is tuple:
        return f"list of {_type_name(arguments[0])}"
    if origin is dict:
        return "table"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, "{role, content}")


def main() -> None:
    """Write all three files."""
    CONFIG_PATH.write_text(config_text(), encoding="utf-8")
    DOCUMENT_PATH.write_text(document_text(), encoding="utf-8")
    ERRORS_PATH.write_text(errors_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
