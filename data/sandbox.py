"""The Jinja environment that all templates run in: sandboxed, immutable, and bounded in steps, time and size.

Templates come from a configuration or a model folder and may be hostile or only careless; Jinja's sandbox keeps them
from Python's internals but not from looping for a year or asking for a terabyte. So every loop round and every call is
a step, and the count of steps decides, so that a row fails on every machine or on none; the clock is a backstop. An
operation whose result can be far larger than what it is given is measured before it is made, and all texts that are
made, printed or repeated by a loop are counted, since many of a fair size fill the memory too.
"""

from __future__ import annotations

import functools
import inspect
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT = 1 << 26  # characters of any text that a template makes; an input row has at most as many bytes
MAX_MADE = 4 * MAX_TEXT  # characters of all texts that one rendering makes
MAX_STEPS = 1_000_000
MAX_SECONDS = 30.0
_CALL = 10  # steps of a call, which takes about ten times as long as a round of a loop
_MAX_NUMBER = 1_000_000  # as a width, a count or a repetition
_MAX_BITS = 1 << 16
_ELEMENT = 16  # what an element of a list weighs, in characters
_KEEP_NULL = ("tojson", "default", "d")
_WIDTH = re.compile(r"\d{7,}|\*")
_TAKE_APART = ("split", "rsplit", "splitlines", "list", "title", "urlize", "wordcount", "wordwrap")
# Filters that make no text of the lists they are given.
_KEEP_LISTS = (
    "abs", "attr", "batch", "count", "d", "default", "dictsort", "first", "float", "groupby", "int", "items", "last",
    "length", "list", "map", "max", "min", "random", "reject", "rejectattr", "round", "select", "selectattr", "slice",
    "sort", "sum", "unique",
)  # fmt: skip


class Exceeded(SecurityError):
    """A template went over a limit."""


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates render within limits, one at a time. Call `start` before each rendering."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, *, null_as_text: bool = False, **options: Any) -> None:
        """`null_as_text`: filters take null as an empty text, except those that are about null."""
        options.setdefault("finalize", self.weigh)
        super().__init__(**options)
        self._steps = self._made = 0
        self._deadline = 0.0
        self._null_as_text = null_as_text
        for name in ("lipsum", "cycler", "joiner"):
            self.globals.pop(name, None)
        self.filters = {name: self._bounded(name, function) for name, function in self.filters.items()}
        self.filters["_each"] = self._each
        self.filters["_joined"] = self._joined
        self.filters["_sized"] = self._sized

    def start(self) -> None:
        """A new rendering begins: reset the counts."""
        self._steps = self._made = 0
        self._deadline = time.monotonic() + MAX_SECONDS

    def weigh(self, value: Any) -> Any:
        """`value`, which is printed: Exceeded if its text is too long, or all of them together are."""
        self._count(len(value) if isinstance(value, str) else _weight(value))
        return value

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Add or replace a filter, under the same limits."""
        self.filters[name] = self._bounded(name, function)

    def _step(self, weight: int = 1) -> None:
        self._steps += weight
        if self._steps > MAX_STEPS:
            raise Exceeded(f"more than {MAX_STEPS:,} steps")
        if self._steps % 500 < weight and time.monotonic() > self._deadline:
            raise Exceeded(f"more than {MAX_SECONDS:.0f} seconds")

    def _count(self, size: int) -> None:
        self._made += size
        if size > MAX_TEXT or self._made > MAX_MADE:
            raise Exceeded("a text is too long" if size > MAX_TEXT else "the texts are too long together")

    def _sized(self, value: Any) -> Any:
        if isinstance(value, str | bytes):
            self._count(len(value))
        elif isinstance(value, list | tuple):
            self._count(_ELEMENT * len(value))
        return value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's parser, then loops, concatenations and captured blocks made to pass through our filters."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            written = sum(len(text.data) for text in loop.find_all(nodes.TemplateData))
            loop.iter = _filter(cast(nodes.Expr, loop.iter), "_each", written)
        for block in tree.find_all(nodes.AssignBlock):
            block.filter = _filter(block.filter, "_sized")
        return _replace_concatenations(tree)

    def _each(self, values: Iterable[Any], written: int) -> Iterator[Any]:
        for value in values:
            self._step()
            self._count(written)
            yield value

    def _joined(self, values: Sequence[Any]) -> str:
        _check_size(sum(map(_weight, values)))
        texts = ["" if value is None and self._null_as_text else str(value) for value in values]
        self._count(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  as the base class
        __self._step(_CALL)
        _check_arguments((*args, *kwargs.values()))
        method = getattr(__obj, "__wrapped__", __obj)  # Jinja wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str | bytes):
            _check_growth(method.__name__, owner, (*args, *kwargs.values()))
        return __self._sized(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        return self._sized(super().call_binop(context, operator, left, right))

    def _bounded(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        first = 1 if hasattr(function, "jinja_pass_arg") else 0  # before it: the context that Jinja passes
        parameters = inspect.signature(function)

        @functools.wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self._step(_CALL)
            if kwargs:  # replace(old="x") is measured as replace("x") is
                bound = parameters.bind(*args, **kwargs)
                bound.apply_defaults()
                args, kwargs = bound.args, bound.kwargs
            given = (*args[first + 1 :], *kwargs.values())
            _check_arguments(given)
            value = args[first] if len(args) > first else None
            if value is None and self._null_as_text and name not in _KEEP_NULL:
                args = (*args[:first], "", *args[first + 1 :])
            elif name == "join":
                _check_growth("join", str(given[0]) if given else "", (value,))
            elif isinstance(value, str):
                _check_growth(name, value, given)
            elif name not in _KEEP_LISTS:
                _check_size(_weight(value))
            return self._sized(function(*args, **kwargs))

        return bounded


def _filter(node: nodes.Expr | None, name: str, *options: int) -> nodes.Filter:
    line = getattr(node, "lineno", 1)
    return nodes.Filter(node, name, [nodes.Const(option) for option in options], [], None, None, lineno=line)


def _replace_concatenations(tree: nodes.Template) -> nodes.Template:
    from jinja2.visitor import NodeTransformer

    class Concatenations(NodeTransformer):
        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  named by Jinja
            self.generic_visit(node)
            return _filter(nodes.List(node.nodes, lineno=node.lineno), "_joined")

    replaced: nodes.Template = Concatenations().visit(tree)
    replaced.set_environment(tree.environment)  # type: ignore[arg-type]
    return replaced


def _weight(value: Any) -> int:
    """Characters that a value's text has at least, or more than `MAX_TEXT` of them: it is not looked at further."""
    total, pending = 0, [value]
    while pending and total <= MAX_TEXT:
        one = pending.pop()
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, Mapping | list | tuple | set | frozenset):
            total += _ELEMENT * len(one)
            if total <= MAX_TEXT:
                pending.extend(one)
                pending.extend(one.values() if isinstance(one, Mapping) else ())
    return total


def _check_size(size: int) -> None:
    if size > MAX_TEXT:
        raise Exceeded("a text is too long")


def _check_arguments(arguments: Iterable[Any]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_NUMBER for value in arguments):
        raise Exceeded(f"a number over {_MAX_NUMBER:,} as an argument")


def _check_growth(name: str, text: str | bytes, args: Sequence[Any]) -> None:
    """Methods and filters whose result can be the product of what they are given."""
    given = _weight(args)
    size = len(text)
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str | bytes) and isinstance(args[1], str | bytes):
        size += text.count(args[0]) * len(args[1])  # type: ignore[arg-type]
    elif name == "join" and args:
        size = given + len(text) * (len(args[0]) if isinstance(args[0], Sequence) else 0)
    elif name in ("format", "format_map") and isinstance(text, str):
        if _WIDTH.search(text):
            raise Exceeded("a width in a format is too large")
        size += (text.count("{") + text.count("%")) * given
    elif name == "indent" and args and isinstance(text, str):
        size += (text.count("\n") + 1) * (args[0] if isinstance(args[0], int) else given)
    elif name == "translate":
        raise Exceeded("translate is not available in templates")
    elif name == "expandtabs" and isinstance(text, str):
        size += text.count("\t") * max((value for value in args if isinstance(value, int)), default=8)
    elif name in _TAKE_APART:
        size *= max(_ELEMENT, given)
    _check_size(size)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """What can be far longer than its operands, before it is made; a sum is measured afterwards."""
    if operator == "%":
        if isinstance(left, str):
            if _WIDTH.search(left):
                raise Exceeded("a width in a format is too large")
            _check_size(len(left) + left.count("%") * _weight(right))
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MAX_BITS:
            raise Exceeded("a number is too large")
    elif isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_BITS:
            raise Exceeded("a number is too large")
    else:
        for value, count in ((left, right), (right, left)):
            if isinstance(count, int):
                _check_size(_weight(value) * count)
