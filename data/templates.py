"""Prompt templates: Jinja over the columns of a row, where a row's text is data and never a template.

Which columns a template reads is known from its source, so a mistyped one is found at the start. Null renders as an
empty text. `render_marked` also tells which parts of the text came from the row: control tokens written there stay
literal, and those are the parts that may be shortened when a prompt is too long.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jinja2
from jinja2 import meta, nodes

from data.errors import InputError
from data.sandbox import MAX_TEXT, Exceeded, Sandbox

FUNCTIONS = ("range", "dict", "namespace")
"""What a template may call besides filters and methods; a column of that name cannot be read."""

FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template can raise while it renders a row."""


class TemplateFailed(Exception):
    """A template could not render a row. The message names the error and the line, never the row's text."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and the regions (start, end) of it, in order and disjoint, that came from a row."""

    text: str
    regions: tuple[tuple[int, int], ...]

    def shortened(self, length: int) -> Rendered:
        """Every region cut to its first `length` characters."""
        parts: list[str] = []
        regions: list[tuple[int, int]] = []
        done = size = 0
        for start, end in self.regions:
            parts += [self.text[done:start], self.text[start : min(end, start + length)]]
            size += start - done
            regions.append((size, size + len(parts[-1])))
            size += len(parts[-1])
            done = end
        return Rendered("".join((*parts, self.text[done:])), tuple(regions))


class TextSource(Protocol):
    """What makes a text of a row: a template or a column."""

    columns: tuple[str, ...]

    def render(self, record: Mapping[str, Any]) -> str: ...

    def render_marked(self, record: Mapping[str, Any]) -> Rendered: ...


class Template:
    """A prompt template. `{{ column }}`, or `{{ row["any column"] }}` for names that are no Jinja names."""

    def __init__(self, source: str, setting: str) -> None:
        """InputError naming `setting` if the source is no template, or includes others."""
        self._marking = False
        secret = secrets.randbits(64)  # marks that no row can contain
        self._open, self._close = f"\ufdd3{secret}\ufdd3", f"\ufdd4{secret}\ufdd4"
        self._sandbox = Sandbox(
            null_as_text=True, undefined=jinja2.StrictUndefined, finalize=self._finalize, keep_trailing_newline=True
        )
        try:
            names, self._uses_row = _names(source)
            self._template = self._sandbox.from_string(source)
            self._pieces = _pieces(self._sandbox.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{setting}: line {error.lineno} is not valid Jinja: {error.message}") from error
        except FAILURES as error:
            raise InputError(f"{setting} is not a template: {error}") from error
        self.functions: tuple[str, ...] = tuple(name for name in FUNCTIONS if name in names)
        self.columns: tuple[str, ...] = tuple(sorted(names - set(FUNCTIONS)))
        self.source = source

    def render(self, record: Mapping[str, Any]) -> str:
        """The text for a row; a missing column counts as null. TemplateFailed if the template does."""
        if self._pieces is not None and not self._marking:
            texts = [_text(record.get(piece)) if name else piece for piece, name in self._pieces]
            if sum(map(len, texts)) > MAX_TEXT:
                raise TemplateFailed("the text is too long in line 1 of the template")
            return "".join(texts)
        variables: dict[str, Any] = {name: record.get(name) for name in self.columns}
        if self._uses_row:
            variables["row"] = dict(variables)
        self._sandbox.start()
        return render_bounded(self._template, variables)

    def render_marked(self, record: Mapping[str, Any]) -> Rendered:
        """`render`, and which parts came from the row: the outputs of all expressions that are not constant."""
        self._marking = True
        try:
            marked = self.render(record)
        finally:
            self._marking = False
        parts: list[str] = []
        regions: list[tuple[int, int]] = []
        depth = position = start = 0
        for index, segment in enumerate(marked.split(self._open)):
            if index:
                if depth == 0:
                    start = position
                depth += 1
            for close, part in enumerate(segment.split(self._close)):
                if close:
                    depth -= 1
                    if depth == 0:
                        regions.append((start, position))
                parts.append(part)
                position += len(part)
        return Rendered("".join(parts), tuple(regions))

    def _finalize(self, value: Any) -> Any:
        """Runs on every output; on constants when the template is compiled, when nothing is marked."""
        if callable(value) and not isinstance(value, jinja2.Undefined):  # {{ meta.items }} is the method, not the key
            raise TypeError("a function is no text")
        text = _text(self._sandbox.weigh(value))
        return f"{self._open}{text}{self._close}" if self._marking else text


class ColumnText:
    """The text of one column as it stands."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.columns: tuple[str, ...] = (column,)

    def render(self, record: Mapping[str, Any]) -> str:
        """The column's text, other values as Python writes them, null as an empty text."""
        value = record.get(self.column)
        return value if isinstance(value, str) else "" if value is None else str(value)

    def render_marked(self, record: Mapping[str, Any]) -> Rendered:
        text = self.render(record)
        return Rendered(text, ((0, len(text)),))


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def render_bounded(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """The text of a compiled template whose sandbox was started. TemplateFailed, also when it is over a limit."""
    parts: list[str] = []
    size = 0
    try:
        # Not Template.new_context, which takes half the time of a short template to merge the globals.
        parent = {**template.environment.globals, **variables}
        context = template.environment.context_class(template.environment, parent, template.name, template.blocks)
        for part in template.root_render_func(context):
            size += len(part)
            if size > MAX_TEXT:
                raise Exceeded("the text is too long")
            parts.append(part)
    except FAILURES as error:
        raise TemplateFailed(f"{_reason(error)} in line {_line(template, error)} of the template") from error
    return "".join(parts)


def _pieces(tree: nodes.Template) -> list[tuple[str, bool]] | None:
    """Texts (False) and column names (True) in turn, if the template is nothing else; most are, and need no Jinja."""
    pieces: list[tuple[str, bool]] = []
    for statement in tree.body:
        for node in statement.nodes if isinstance(statement, nodes.Output) else [statement]:
            if isinstance(node, nodes.TemplateData):
                pieces.append((node.data, False))
            elif isinstance(node, nodes.Name) and node.name not in FUNCTIONS:
                pieces.append((node.name, True))
            else:
                return None
    return pieces


def _reason(error: BaseException) -> str:
    # Only our own messages: Jinja's and Python's may quote the row.
    return str(error) if isinstance(error, Exceeded) else type(error).__name__


def _line(template: jinja2.Template, error: BaseException) -> int:
    trace, line = error.__traceback__, 1
    while trace is not None:
        if trace.tb_frame.f_code is template.root_render_func.__code__ or trace.tb_frame.f_globals.get("blocks"):
            line = template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _names(source: str) -> tuple[set[str], bool]:
    """Names that the template takes from outside, and whether `row[...]` is one way it does so."""
    sandbox = Sandbox()  # its limits hold for constant expressions too, which are evaluated here
    sandbox.globals.clear()
    tree = sandbox.parse(source)
    for other in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
        raise jinja2.TemplateSyntaxError("templates cannot include or import others", other.lineno)
    names = set(meta.find_undeclared_variables(tree))
    subscripts = [
        node.arg.value
        for node in tree.find_all(nodes.Getitem)
        if isinstance(node.node, nodes.Name) and node.node.name == "row" and isinstance(node.arg, nodes.Const)
    ]
    uses = _count(tree.find_all(nodes.Name), "row")
    if "row" not in names or not subscripts or len(subscripts) != uses:
        return names, False
    return (names - {"row"}) | {str(name) for name in subscripts}, True


def _count(names: Iterable[nodes.Name], wanted: str) -> int:
    return sum(node.name == wanted for node in names)
