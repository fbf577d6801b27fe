"""Chat templates render as transformers renders them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from data.chat import ChatTemplate
from data.errors import InputError
from data.templates import TemplateFailed

NOW = datetime(2024, 2, 29, 23, 59)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{%- if tools is not none %}{{- "tools" }}{% endif %}
{{- "<|start|>system<|end|>\\n\\n" + system_message }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
    {{- '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim + eos_token }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\\n\\n' }}
{%- endif %}
"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% elif message['role'] == 'assistant' %}
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
{% else %}{{ raise_exception('unknown role ' ~ message['role']) }}{% endif %}
{% endfor %}"""
QWEN = """{%- set ns = namespace(multi_step_tool=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last = index %}
    {%- endif %}
    {%- if loop.index0 > 100 %}{%- break %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}
    {{- message.role + ns.last|string + content + ({'a': [1, 'é<>&'], 'b': none}|tojson) }}
    {{- {'z': 1, 'y': 2}|tojson(indent=2) }}
{%- endfor %}
{%- macro show(x, y=2) %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}
{{ show(1) }}{% call show(2) %}in{% endcall %}
{%- if enable_thinking is defined and enable_thinking is false %}x{% endif %}
"""
CONVERSATIONS = [
    [("user", "hi")],
    [("system", "  Be brief. "), ("user", "What is {{ 7*7 }}?\n")],
    [("user", "a"), ("assistant", "<think>x</think>\n\nb"), ("user", "c <b>&</b> 😀")],
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("source", [CHATML, LLAMA, MISTRAL, QWEN])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_as_transformers(source: str, conversation: list[tuple[str, str]]) -> None:
    messages = [{"role": role, "content": content} for role, content in conversation]
    ours = ChatTemplate(source, TOKENS, NOW)
    try:
        (expected,), _ = render_jinja_template(
            [messages], chat_template=source, add_generation_prompt=True, tools=None, documents=None, **TOKENS
        )
    except Exception:  # noqa: BLE001  whatever a template may raise
        with pytest.raises(TemplateFailed):
            ours.render(messages)
    else:
        assert ours.render(messages) == expected


def test_the_clock_stands_still() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", {}, NOW)
    assert template.render([]) == "29 Feb 2024"
    assert template.writes_date
    assert not ChatTemplate(CHATML, {}, NOW).writes_date


def test_refused_messages_are_told_at_the_start_in_the_templates_words() -> None:
    template = ChatTemplate(MISTRAL, TOKENS, NOW)
    template.check(["user"])
    with pytest.raises(InputError, match="roles must alternate"):
        template.check(["system", "user"])


def test_limits_are_for_one_conversation_not_for_all() -> None:
    template = ChatTemplate("{% for i in range(90000) %}{% endfor %}{{ messages[0].content }}", {}, NOW)
    for number in range(15):
        assert template.render([{"role": "user", "content": str(number)}]) == str(number)


def test_a_row_that_is_refused_does_not_show_its_text() -> None:
    template = ChatTemplate("{{ raise_exception(messages[0].content) }}", {}, NOW)
    with pytest.raises(TemplateFailed) as caught:
        template.render([{"role": "user", "content": "SECRET"}])
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("source", ["{{ messages", "{% nonsense %}", "{{ x|nofilter }}"])
def test_invalid_templates(source: str) -> None:
    with pytest.raises(InputError, match="chat template is not valid"):
        ChatTemplate(source, {}, NOW)


@pytest.mark.parametrize(
    "source",
    ["{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}", "{{ ''.__class__.__base__.__subclasses__() }}"],
)
def test_a_hostile_template_reaches_nothing(source: str) -> None:
    template = ChatTemplate(source, {}, NOW)
    messages: list[Any] = [{"role": "user", "content": "x"}]
    with pytest.raises(TemplateFailed):
        template.render(messages)
    assert len(messages) == 1
