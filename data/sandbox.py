"""The Jinja environment that all templates run in: sandboxed, immutable, and bounded in steps, time and size.

Templates come from a configuration or a model folder and may be hostile or only careless; Jinja's sandbox keeps them
from Python's internals but not from looping for a year or asking for a terabyte. So every loop round and every call is
a step, growing operations are measured before they are made, and the count of steps decides, so that a row fails on
every machine or on none; the clock is a backstop.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT = 1 << 26  # characters of any text that a template makes; an input row has at most as many bytes
MAX_STEPS = 1_000_000
MAX_SECONDS = 30.0
_CALL = 10  # steps of a call, which takes about ten times as long as a round of a loop
_MAX_NUMBER = 1_000_000  # as a width, a count or a repetition
_MAX_BITS = 1 << 16
_KEEP_NULL = ("tojson", "default", "d")
_WIDTH = re.compile(r"\d{7,}|\*")


class Exceeded(SecurityError):
    """A template went over a limit."""


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates render within limits, one at a time. Call `start` before each rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *, null_as_text: bool = False, **options: Any) -> None:
        """`null_as_text`: filters take null as an empty text, except those that are about null."""
        super().__init__(**options)
        self._steps = 0
        self._deadline = 0.0
        self._null_as_text = null_as_text
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters["_each"] = self._each
        self.filters["_joined"] = self._joined
        self.filters["_sized"] = _sized

    def start(self) -> None:
        """A new rendering begins: reset the counts."""
        self._steps = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add or replace a filter, under the same limits."""
        self.filters[name] = self._bounded(name, function)

    def _step(self, weight: int = 1) -> None:
        self._steps += weight
        if self._steps > MAX_STEPS or (self._steps % 500 < weight and time.monotonic() > self._deadline):
            raise Exceeded(f"more than {MAX_STEPS:,} steps or {MAX_SECONDS:.0f} seconds")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's parser, then loops, concatenations and captured blocks made to pass through our filters."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filter(cast(nodes.Expr, loop.iter), "_each")
        for block in tree.find_all(nodes.AssignBlock):
            block.filter = _filter(block.filter, "_sized")
        return _replace_concatenations(tree)

    def _each(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._step()
            yield value

    def _joined(self, values: Sequence[Any]) -> str:
        texts = ["" if value is None and self._null_as_text else str(value) for value in values]
        if sum(map(len, texts)) > MAX_TEXT:
            raise Exceeded("a text is too long")
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as the base class
        __self._step(_CALL)
        _check_arguments((*args, *kwargs.values()))
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_growth(method.__name__, owner, args)
        return _sized(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # before it: the context that Jinja passes

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._step(_CALL)
            _check_arguments((*args[first + 1 :], *kwargs.values()))
            value = args[first] if len(args) > first else None
            if value is None and self._null_as_text and name not in _KEEP_NULL:
                args = (*args[:first], "", *args[first + 1 :])
            elif name == "join" and isinstance(value, Sequence):
                _check_growth("join", str(args[first + 1]) if len(args) > first + 1 else "", (value,))
            elif isinstance(value, str):
                _check_growth(name, value, args[first + 1 :])
            return _sized(function(*args, **kwargs))

        return bounded


def _filter(node: nodes.Expr | None, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=getattr(node, "lineno", 1))


def _replace_concatenations(tree: nodes.Template) -> nodes.Template:
    from jinja2.visitor import NodeTransformer

    class Concatenations(NodeTransformer):
        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  named by Jinja
            self.generic_visit(node)
            return _filter(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    replaced: nodes.Template = Concatenations().visit(tree)
    replaced.set_environment(tree.environment)  # type: ignore[arg-type]
    return replaced


def _sized(value: Any) -> Any:
    if isinstance(value, str | list | tuple) and len(value) > MAX_TEXT:
        raise Exceeded("a text is too long")
    return value


def _check_arguments(arguments: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_NUMBER for value in arguments):
        raise Exceeded(f"a number over {_MAX_NUMBER:,} as an argument")


def _check_growth(name: str, text: str, args: Sequence[Any]) -> None:
    """Methods and filters whose result can be the product of what they are given."""
    size = 0
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        size = text.count(args[0]) * len(args[1])
    elif name == "join" and args and isinstance(args[0], Sequence):
        size = len(args[0]) * len(text)
    elif name in ("format", "format_map") and _WIDTH.search(text):
        raise Exceeded("a width in a format is too large")
    elif name == "indent" and args and isinstance(args[0], int):
        size = text.count("\n") * args[0]
    elif name == "translate":
        raise Exceeded("translate is not available in templates")
    elif name in ("expandtabs", "urlize", "wordwrap"):
        size = text.count("\t") * max((value for value in args if isinstance(value, int)), default=8)
    if size > MAX_TEXT:
        raise Exceeded("a text is too long")


def _check_operation(operator: str, left: Any, right: Any) -> None:
    if operator == "%":
        if isinstance(left, str) and _WIDTH.search(left):
            raise Exceeded("a width in a format is too large")
    elif operator == "+":
        if hasattr(left, "__len__") and hasattr(right, "__len__") and len(left) + len(right) > MAX_TEXT:
            raise Exceeded("a text is too long")
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MAX_BITS:
            raise Exceeded("a number is too large")
    elif isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_BITS:
            raise Exceeded("a number is too large")
    else:
        for value, count in ((left, right), (right, left)):
            if hasattr(value, "__len__") and isinstance(count, int) and len(value) * count > MAX_TEXT:
                raise Exceeded("a text is too long")
