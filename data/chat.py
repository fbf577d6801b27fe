"""A model's chat template, rendered as transformers renders it, in our sandbox.

transformers itself is not used: importing it takes seconds and its environment has no limits. The clock is stopped at
the time given, because several models write today's date into the prompt and a run may pass midnight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from data.errors import InputError
from data.sandbox import Sandbox
from data.templates import FAILURES, TemplateFailed, render_bounded

ROLES = ("system", "user", "assistant", "tool", "developer")


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], now: datetime) -> None:
        """InputError if the source is no template. `special_tokens`: bos_token and so on, as it may refer to them."""
        self._sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self._sandbox.add_filter("tojson", _tojson)
        self._sandbox.globals["raise_exception"] = _raise
        self._sandbox.globals["strftime_now"] = now.strftime
        try:
            self._template = self._sandbox.from_string(source)
        except FAILURES as error:
            raise InputError(f"the model's chat template is not valid: {error}") from error
        self._special_tokens = dict(special_tokens)
        self.writes_date = "strftime_now" in source

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks for the next answer. TemplateFailed if the template refuses the messages."""
        self._sandbox.start()
        variables: dict[str, Any] = {**self._special_tokens, "messages": list(messages), "tools": None}
        return render_bounded(self._template, {**variables, "documents": None, "add_generation_prompt": True})

    def check(self, roles: Sequence[str]) -> None:
        """InputError with the template's own words if it refuses messages of these roles, whatever they say."""
        try:
            self.render([{"role": role, "content": "text"} for role in roles])
        except TemplateFailed as error:
            # The only place where its message is shown: no text of a row can be in it.
            reason = error.__cause__ if isinstance(error.__cause__, jinja2.TemplateError) else error
            raise InputError(f"job.prompt: the model's chat template refuses these messages: {reason}") from error


class _Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it only renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012  as the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> Any:
        return caller()


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
