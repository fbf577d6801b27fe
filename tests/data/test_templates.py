"""Templates: what they read, how null renders, what is marked, and that nothing in them runs away."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import sandbox
from data.chat import ChatTemplate
from data.errors import InputError
from data.templates import ColumnText, Rendered, Template, TemplateFailed


def render(source: str, **record: Any) -> str:
    return Template(source, "job.prompt").render(record)


def test_columns_are_read_off_the_source() -> None:
    source = "{% for x in list_ %}{{ x }}{% endfor %}{{ a.b }}{% if c %}{{ range(3) }}{% endif %}{{ row['My column'] }}"
    template = Template(source, "job.prompt")
    assert template.columns == ("My column", "a", "c", "list_")
    assert template.functions == ("range",)


def test_row_gives_columns_of_any_name_and_may_itself_be_a_column() -> None:
    assert render("{{ row['My column'] }}{{ row.b }}", row={"My column": 1, "b": 2}) == "12"
    template = Template("{{ row['My column'] }}", "job.prompt")
    assert template.columns == ("My column",)
    assert template.render({"My column": "x"}) == "x"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ a }}", ""),
        ("[{{ a|upper }}|{{ a|trim }}|{{ a|truncate(5) }}]", "[||]"),
        ("{{ 'x' ~ a ~ 'y' }}", "xy"),
        ("{{ a is none }}", "True"),
        ("{{ a|tojson }}", "null"),
        ("{{ a|default('d', true) }}", "d"),
        ("{% if not a %}no{% endif %}", "no"),
        ("{{ d.e }}", ""),
        ("{{ missing }}", ""),
    ],
)
def test_null_renders_empty(source: str, expected: str) -> None:
    assert render(source, a=None, d={"e": None}) == expected


def test_whitespace_is_kept_as_written() -> None:
    assert render(" a\n{% if x %}\nb\n{% endif %}\n", x=1) == " a\n\nb\n\n"


@pytest.mark.parametrize(
    "text", ["{{ 7*7 }}", "{% for x in y %}", "{# no #}", "{{ secret }}", "${x}", "%(a)s", "<b>&amp;"]
)
def test_text_of_a_row_is_data(text: str) -> None:
    assert render("a{{ t }}b", t=text, secret="s") == f"a{text}b"
    assert render("{% set u = t %}{{ u ~ t }}", t=text) == text * 2


@pytest.mark.parametrize(
    "source",
    ["{{ a", "{% if %}", "{{ a|nofilter }}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}"],
)
def test_what_is_no_template_names_the_setting(source: str) -> None:
    with pytest.raises(InputError, match=r"^job\.prompt") as caught:
        Template(source, "job.prompt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ a.__class__ }}",
        "{{ a.__class__.__mro__ }}",
        "{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ l.append(1) }}",
        "{{ a.format.__self__ }}",
        "{{ '{0.__class__}'.format(a) }}",
        "{{ d.nothing }}",
        "{{ d.items }}",
        "{{ a + 1 }}",
        "{{ 1 / 0 }}",
    ],
)
def test_unsafe_and_failing_expressions_fail_their_row_without_its_text(source: str) -> None:
    with pytest.raises(TemplateFailed) as caught:
        render(source, a="SECRET", l=["SECRET"], d={}, cycler=None)
    assert "SECRET" not in str(caught.value)


def test_failures_tell_the_line() -> None:
    with pytest.raises(TemplateFailed, match="line 3 of the template"):
        render("a\nb\n{{ d.nothing }}\n", d={})


HOSTILE = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
    "{{ range(10**9) | list }}",
    "{{ 'x' * 10**10 }}",
    "{{ 10**10 * 'x' }}",
    "{{ [1] * 10**10 }}",
    "{{ 9**99999999 }}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = x %}{% endfor %}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x|replace('x', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='xx') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('x', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'|center(10**10) }}",
    "{{ 'x\\n'|indent(10**10) }}",
    "{{ '%10000000000d' % 1 }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '{:10000000000}'.format(1) }}",
    "{{ '%10000000000d'|format(1) }}",
    "{{ range(100000)|join('x' * 100000) }}",
    "{{ ('x' * 100000).join(range(100000)|map('string')|list) }}",
    "{{ range(99)|batch(10**10, 'x')|list }}",
    "{% macro m(n) %}{{ m(n) }}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "{% for i in range(100000) %}{{ 'x' * 100000 }}{% endfor %}",
    "{% for i in range(60000) %}{{ i|abs|abs }}{% endfor %}",
]


BIG = "{% set b = 'x' * 1000000 %}"
MANY = [
    "{% set b = 'x' * 60000 %}{{ b|replace(new=b, old='x') }}",
    "{{ ('\\n' * 1000000)|indent(width=1000000)|length }}",
    "{{ ('\\n' * 1000000)|indent('x' * 1000000)|length }}",
    "{{ ('\\t' * 1000000).expandtabs(1000000)|length }}",
    "{{ ('x' * 100000).translate({120: 'x' * 100000})|length }}",
    "{{ range(100000)|join(d='x' * 100000)|length }}",
    BIG + "{{ ('%(a)s' * 1000000) % {'a': b} }}",
    BIG + "{{ ('%(a)s' * 1000000)|format(a=b) }}",
    BIG + "{{ ('{0}' * 1000000).format(b) }}",
    BIG + "{{ ('{a}' * 1000000).format(a=b) }}",
    BIG + "{{ ('{a}' * 1000000).format_map({'a': b}) }}",
    BIG + "{{ [b] * 1000000 }}",
    BIG + "{{ ''.join([b] * 1000000) }}",
    BIG + "{{ b.encode().replace('x'.encode(), b.encode())|length }}",
    BIG + "{{ ('x ' * 1000000)|wordwrap(1, wrapstring=b)|length }}",
    "{{ ('\\n' * 60000000).splitlines()|length }}",
    "{{ ('x' * 60000000)|list|length }}",
    "{{ range(99999)|map('center', 1000000)|list|length }}",
    "{{ range(99999)|map('center', 1000000)|join|length }}",
    BIG + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [b ~ i] %}{% endfor %}",
    BIG + "{% set n = namespace(l=[]) %}{% for i in range(9999) %}{% set n.l = n.l + [b * 2] %}{% endfor %}",
    BIG + "{% set t %}{% for i in range(99999) %}{{ b }}{% endfor %}{% endset %}{{ t|length }}",
    BIG + "{% macro m() %}{% for i in range(99999) %}{{ b }}{% endfor %}{% endmacro %}{{ m()|length }}",
    "{% set t %}{% for i in range(99999) %}" + "x" * 100_000 + "{% endfor %}{% endset %}{{ t|length }}",
]
"""Texts that would fill the memory before any of them is printed."""

NESTED = "{% set a = ['x' * 1000] %}" + "{% set a = [a, a, a, a, a, a, a, a] %}" * 12
"""A list of little memory and of terabytes of text."""
MANY += [
    NESTED + use
    for use in ("{{ a }}", "{{ a ~ '' }}", "{{ a|join }}", "{{ a|string }}", "{{ a|tojson }}", "{{ '%s' % a }}",
                "{{ a|upper }}", "{{ a|pprint }}", "{{ a|xmlattr }}", "{{ a|replace('x', 'y') }}", "{{ a + a }}")
]  # fmt: skip
OURS = (
    r"^(more than 1,000,000 steps|an?y? ?(text|number|width).* too l|a number|the texts? (is|are) too|translate|Recurs)"
)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """A gibibyte more than is in use: what asks for more fails with a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("source", HOSTILE + MANY)
@pytest.mark.usefixtures("little_memory")
def test_templates_that_run_away_are_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", 600.0)  # not by the clock, which would decide otherwise elsewhere
    with pytest.raises(TemplateFailed, match=OURS):
        render(source)


@pytest.mark.parametrize("source", [BIG + "{{ [b] * 1000000 }}", *MANY[-11:-9]])
@pytest.mark.usefixtures("little_memory")
def test_chat_templates_have_the_same_limits(source: str) -> None:
    with pytest.raises(TemplateFailed, match="too long"):
        ChatTemplate(source, {}, datetime(2024, 1, 1)).render([])


def test_the_clock_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "MAX_SECONDS", -1.0)
    with pytest.raises(TemplateFailed, match="seconds in line 1"):
        render("{% for i in range(1000) %}{% endfor %}")


def test_a_text_that_is_repeated_is_bounded_where_no_jinja_is_needed() -> None:
    with pytest.raises(TemplateFailed, match="the text is too long"):
        render("{{ text }}" * 70, text="x" * 1_000_000)


def test_texts_of_ordinary_size_are_no_concern_of_the_limits() -> None:
    rows = [f"row {number}" for number in range(20_000)]
    assert render("{{ rows|join(', ') }}{{ rows|length }}", rows=rows).endswith("20000")
    assert len(render("{{ text|upper|trim|replace('A', 'bb')|indent(2) }}", text="a " * 1_000_000)) == 2_999_999
    assert render("{{ '%s: %s' % (a, b) }}{{ '{}'.format(a) }}", a="x" * 1_000_000, b="y").count("x") == 2_000_000


def test_the_size_of_a_text_is_bounded_by_itself_and_not_by_the_clock() -> None:
    with pytest.raises(TemplateFailed, match="the text is too long"):
        render("{% for i in range(1000) %}{{ text }}{% endfor %}", text="x" * 100_000)


def test_limits_are_for_one_row_not_for_all() -> None:
    template = Template("{% for i in range(90000) %}{% endfor %}{{ t }}", "job.prompt")
    assert [template.render({"t": n}) for n in range(15)] == [str(n) for n in range(15)]


def test_loops_keep_their_helpers() -> None:
    source = (
        "{% for x in l %}{{ loop.index }}/{{ loop.length }}{{ x }}{{ ',' if not loop.last }}{% else %}none{% endfor %}"
    )
    assert render(source, l=["a", "b"]) == "1/2a,2/2b"
    assert render(source, l=[]) == "none"
    assert render("{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}", d={"a": 1}) == "a1"


def parts(rendered: Rendered) -> list[str]:
    return [rendered.text[start:end] for start, end in rendered.regions]


def test_marked_regions_are_what_came_from_the_row() -> None:
    source = "A {{ a }} {{ 'const' }}{% set c %}<{{ b }}>{% endset %} {{ c|upper }}{{ n }} Z"
    template = Template(source, "job.prompt")
    record = {"a": "x{{y}}", "b": "q", "n": None}
    rendered = template.render_marked(record)
    assert rendered.text == template.render(record) == "A x{{y}} const <Q> Z"
    assert parts(rendered) == ["x{{y}}", "<Q>", ""]
    assert rendered.shortened(1) == Rendered("A x const < Z", ((2, 3), (10, 11), (11, 11)))
    assert template.render(record) == rendered.text  # marking is over


@settings(deadline=None)
@given(st.text(), st.text())
def test_marking_changes_no_text(a: str, b: str) -> None:
    template = Template("1{{ a }}2{% for x in b %}{{ x }}{% endfor %}3{{ a ~ b }}", "job.prompt")
    rendered = template.render_marked({"a": a, "b": b})
    assert rendered.text == template.render({"a": a, "b": b})
    assert "".join(parts(rendered)) == a + b + a + b
    assert rendered.shortened(10**6) == rendered
    assert rendered.shortened(0).text == "123"


@settings(deadline=None)
@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.lists(st.none()), st.booleans()))
def test_templates_of_names_alone_render_as_jinja_does(value: Any) -> None:
    assert render("a{{ x }}\n{{ x }} ", x=value) == render(
        "a{{ x }}\n{{ x }} {# not names alone #}{% if x %}{% endif %}", x=value
    )


def test_column_text() -> None:
    column = ColumnText("t")
    assert [column.render({"t": value}) for value in ("{{ x }}", None, 3)] == ["{{ x }}", "", "3"]
    assert column.render_marked({"t": "abc"}) == Rendered("abc", ((0, 3),))
