"""Chat templates: what they may use, what they may not, and what is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from streamserve.errors import ConfigError, InvalidParameter
from streamserve.text.chat_template import ChatTemplate, ModelTemplates
from streamserve.text.tokenizers.tokenizer import Tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
USER = {"role": "user", "content": "Hi"}


def render(source: str, messages: list[dict[str, Any]] | None = None, **options: Any) -> str:
    return ChatTemplate(source, {"bos_token": "<s>"}).render(messages or [USER], **options)


def test_a_conversation_ends_with_the_assistants_turn() -> None:
    assert render(CHATML) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_the_demo_models_template_is_its_own(demo: Tokenizer) -> None:
    template = ModelTemplates(demo.chat_templates, demo.special_tokens).choose()
    assert template is not None
    text = template.render([USER])
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert ModelTemplates({}, {}).choose() is None
    given = ModelTemplates(demo.chat_templates, demo.special_tokens, "mine").choose(has_tools=True)
    assert given is not None
    assert given.render([USER]) == "mine"


def test_a_tokenizer_applies_its_template_as_transformers_do(demo: Tokenizer) -> None:
    text = demo.apply_chat_template([USER], tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text.endswith("Hi<|im_end|>\n<|im_start|>assistant\n")
    assert demo.apply_chat_template([USER], add_generation_prompt=True) == demo.encode(text)
    assert demo.apply_chat_template([USER], tokenize=False, chat_template="{{ x }}", x=1) == "1"


@pytest.mark.parametrize("content", ["Well, I", "Well, I ", "好的 "])
def test_the_last_message_can_be_continued(content: str) -> None:
    messages = [USER, {"role": "assistant", "content": content}]
    text = render(CHATML, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n{content}"


def test_continuing_a_trimmed_message_ends_where_its_text_does() -> None:
    source = "{% for m in messages %}[{{ m.content | trim }}]{% endfor %}"
    messages = [USER, {"role": "assistant", "content": "Well, "}]
    assert render(source, messages, add_generation_prompt=False, continue_final_message=True) == "[Hi][Well,"


def test_continuing_and_a_new_turn_exclude_each_other() -> None:
    with pytest.raises(InvalidParameter, match="continue_final_message"):
        render(CHATML, continue_final_message=True)


def test_continuing_what_a_template_does_not_print_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="continue_final_message"):
        render("fixed", add_generation_prompt=False, continue_final_message=True)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("{{ bos_token }}", "<s>"),
        ("{{ {'a': '秋', 'b': '<'} | tojson }}", '{"a": "秋", "b": "<"}'),
        ("{{ [1] | tojson(indent=2) }}", "[\n  1\n]"),
        ("{% for m in messages %}{% if true %}{% break %}{% endif %}x{% endfor %}", ""),
        ("{% generation %}said{% endgeneration %}", "said"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}", "2"),
        ("{{ enable_thinking }} {{ reasoning_effort }}", "False high"),
        ("{{ tools[0].function.name }} {{ documents[0].title }}", "f d"),
        ("{{ dict(a=1).a }}", "1"),
        ("a\n  {% if true %}\nb\n  {% endif %}\nc", "a\nb\nc"),
    ],
)
def test_templates_have_the_functions_that_models_templates_use(source: str, expected: str) -> None:
    text = render(
        source,
        tools=[{"type": "function", "function": {"name": "f"}}],
        documents=[{"title": "d"}],
        variables={"enable_thinking": False, "reasoning_effort": "high"},
    )
    assert text == expected


def test_the_date_is_todays() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", render("{{ strftime_now('%Y-%m-%d') }}"))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[5].content }}", "no element 5"),
        ("{{ messages + 1 }}", "list"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% set ns = namespace(__class__=1) %}", "namespace"),
        ("{{ cycler.__init__.__globals__ }}", "unsafe"),
        ("{% for i in range(999999999) %}{% endfor %}", "Range too big"),
        ("{{ '%d' % 'x' }}", "d format|number"),
    ],
)
def test_what_goes_wrong_in_a_template_is_the_requests_error(source: str, reason: str) -> None:
    with pytest.raises(InvalidParameter, match=rf"messages: .*({reason})"):
        render(source)


def test_a_broken_template_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="syntax error in line 2"):
        ChatTemplate("ok\n{% if %}")


def test_text_parts_are_joined_for_templates_that_print_strings() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert render("{{ messages[0].content }}", [{"role": "user", "content": parts}]) == "one\ntwo"
    listing = "{% for m in messages %}{% for part in m['content'] %}<{{ part.text }}>{% endfor %}{% endfor %}"
    assert render(listing, [{"role": "user", "content": parts}]) == "<one><two>"


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "user", "content": [{"type": "text"}]},
        {"role": "user", "content": 7},
        {"content": "no role"},
        "not an object",
    ],
)
def test_messages_that_are_no_text_are_refused(message: Any) -> None:
    with pytest.raises(InvalidParameter, match="messages"):
        render(CHATML, [message])


def test_absent_content_is_empty() -> None:
    assert render("[{{ messages[0].content }}]", [{"role": "assistant", "content": None}]) == "[]"


def test_tool_arguments_are_objects_in_templates() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    source = "{{ messages[0].tool_calls[0].function.arguments.x }}"
    assert render(source, [{"role": "assistant", "tool_calls": [call]}]) == "1"
    call["function"] = {"name": "f", "arguments": "{"}
    with pytest.raises(InvalidParameter, match="tool call"):
        render(source, [{"role": "assistant", "tool_calls": [call]}])


NONE_MEANS_A_CALL = [
    "{% if m.content is none %}CALL{% else %}{{ m.content }}{% endif %}",
    "{% if m['content'] is not none %}{{ m['content'] }}{% else %}CALL{% endif %}",
    "{% if m.content == none %}CALL{% else %}{{ m.content }}{% endif %}",
    "{% set text = m.content %}{% if text is none %}CALL{% else %}{{ text }}{% endif %}",
]


@pytest.mark.parametrize("source", NONE_MEANS_A_CALL)
def test_absent_content_is_none_where_the_template_asks_for_it(source: str) -> None:
    """deepseek-ai/DeepSeek-V3: a message of calls alone, `content` null, was rendered as empty text, without its calls."""
    source = "{% for m in messages %}" + source + "{% endfor %}"
    calls = [{"function": {"name": "f", "arguments": "{}"}}]
    assert render(source, [{"role": "assistant", "content": None, "tool_calls": calls}]) == "CALL"
    assert render(source, [{"role": "assistant", "tool_calls": calls}]) == "CALL"
    assert render(source, [{"role": "assistant", "content": "text"}]) == "text"


def test_none_of_something_else_leaves_absent_content_empty() -> None:
    source = "{% if tools is not none %}T{% endif %}[{{ messages[0].content }}]"
    assert render(source, [{"role": "assistant", "content": None}]) == "[]"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'f:' + call.arguments + ';' }}",
        "{{ 'f:' ~ call.arguments ~ ';' }}",
        "f:{{ call.arguments }};",
        "{{ 'f:%s;' | format(call.arguments) }}",
        "{{ 'f:{};'.format(call.arguments) }}",
        "{% if call.arguments is string %}f:{{ call.arguments }};{% else %}f:{{ call.arguments | tojson }};{% endif %}",
        "f:{{ call.arguments | trim }};",
        "f:{{ call.arguments | safe }};",
        "f:{{ call.arguments.strip() }};",
        "{% if call.arguments.startswith('{') %}f:{{ call.arguments }};{% endif %}",
        "{% set text = call.arguments | wordwrap(99) %}f:{{ text }};",
        "f:{{ call.arguments.split('|') | join }};",
        "f:{{ call.arguments[0] }}{{ call.arguments[1:] }};",
        "f:{% for letter in call.arguments[:] %}{{ letter }}{% endfor %};",
        "{% if call.arguments != '{}' %}f:{{ call.arguments }};{% endif %}",
        "{% if call.arguments not in ('', '{}') %}f:{{ call.arguments }};{% endif %}",
        "{% if call.arguments is not string %}{{ raise_exception('no text') }}{% endif %}f:{{ call.arguments }};",
    ],
)
@pytest.mark.parametrize("arguments", ['{"x": "北"}', {"x": "北"}])
def test_a_template_that_writes_arguments_as_text_gets_their_json(source: str, arguments: Any) -> None:
    """deepseek-ai/DeepSeek-V3: templates that concatenate arguments failed on an object, or printed Python's form of it."""
    source = "{% for call in messages[0].tool_calls %}{% set call = call.function %}" + source + "{% endfor %}"
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    assert render(source, messages) == 'f:{"x": "北"};'


def test_a_template_that_compares_arguments_with_text_compares_their_json() -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments == '{}' }}"
    for arguments, expected in (({}, "True"), ("{}", "True"), ({"x": 1}, "False")):
        messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
        assert render(source, messages) == expected


def test_a_template_that_refuses_a_conversation_with_calls_says_why_once() -> None:
    source = (
        "{% if messages[0].tool_calls[0].function.arguments is mapping %}{{ raise_exception('first') }}{% endif %}{{ 1 + '' }}"
    )
    with pytest.raises(InvalidParameter, match="first"):
        render(source, [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}])


@pytest.mark.parametrize("arguments", [None, "", "{}", {}])
def test_a_call_without_arguments_has_an_empty_object_of_them(arguments: Any) -> None:
    source = "{{ messages[0].tool_calls[0].function.arguments }}"
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}]
    assert render(source, messages) == "{}"


def test_conversations_with_tools_take_the_template_for_them() -> None:
    """CohereForAI/c4ai-command-r: its `tool_use` template was never used."""
    templates = ModelTemplates({"default": "plain", "tool_use": "tools", "rag": "documents"}, {})
    for has_tools, text in ((False, "plain"), (True, "tools")):
        template = templates.choose(has_tools=has_tools)
        assert template is not None
        assert template.render([USER]) == text
    assert templates.override("rag").render([USER]) == "documents"
    assert templates.override("{{ messages[0].content }}").render([USER]) == "Hi"
    only = ModelTemplates({"default": "plain"}, {}).choose(has_tools=True)
    assert only is not None
    assert only.render([USER]) == "plain"


def test_any_role_is_the_templates_to_refuse() -> None:
    assert render("{{ messages[0].role }}", [{"role": "ipython", "content": "1"}]) == "ipython"


def test_variables_may_not_replace_the_conversation() -> None:
    with pytest.raises(InvalidParameter, match="chat_template_kwargs: can't set messages"):
        render(CHATML, variables={"messages": []})


def test_messages_are_left_as_they_were() -> None:
    messages = [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    render(
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        messages,
        add_generation_prompt=False,
        continue_final_message=True,
    )
    assert messages == [{"role": "assistant", "content": [{"type": "text", "text": "a"}]}]


def test_reasoning_is_known_by_all_its_names() -> None:
    source = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}"
    assert render(source, [{"role": "assistant", "content": "", "reasoning": "why"}]) == "why why"
