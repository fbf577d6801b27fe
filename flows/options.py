"""The options that commands share, and the settings that they give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.settings import Settings

DEFAULT_CONFIG = Path("config.toml")

Input = Annotated[str | None, typer.Option("--input", help="Sets input.path.", metavar="PATH")]
Output = Annotated[str | None, typer.Option("--output", help="Sets output.path.", metavar="PATH")]
Model = Annotated[str | None, typer.Option("--model", help="Sets model.path.", metavar="MODEL")]
Limit = Annotated[int | None, typer.Option("--limit", help="Sets input.limit: the first rows alone.", metavar="N")]
Config = Annotated[Path | None, typer.Option("--config", help="Configuration file; ./config.toml if there is one.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Any setting below.", metavar="SECTION.KEY=VALUE")]
RunDir = Annotated[Path | None, typer.Option("--run-dir", help="The run's folder; beside the output if not set.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Set earlier work aside, and replace another result.")]
Retry = Annotated[bool, typer.Option("--retry-errors", help="Compute the rows that ended in an error again.")]


class SettingsHelp(typer.core.TyperCommand):
    """A command whose help ends with the reference of all settings."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """List every setting with its default and description."""
        from tasks.reference import help_lines

        with formatter.section("Settings (--set, OVERNIGHT_SECTION__KEY, or the configuration file)"):
            formatter.write_dl(list(help_lines()))


def given_settings(
    config: Path | None,
    sets: list[str] | None,
    *,
    input_path: str | None = None,
    output_path: str | None = None,
    model: str | None = None,
    limit: int | None = None,
) -> Settings:
    """The settings of a command: its options over the environment, over the configuration file. InputError if wrong."""
    from tasks.configuration import load_settings

    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    if config is not None:
        typer.echo(f"Settings from {config}", err=True)
    options: dict[str, dict[str, Any]] = {
        "input": {"path": input_path, "limit": limit},
        "output": {"path": output_path},
        "model": {"path": model},
    }
    given = {section: {k: v for k, v in values.items() if v is not None} for section, values in options.items()}
    return load_settings(config, {section: values for section, values in given.items() if values}, sets or ())
