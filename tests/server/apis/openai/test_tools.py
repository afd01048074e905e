"""Tool calls and reasoning over HTTP, streamed and whole, from an engine that says what a model would."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamserve.errors import ConfigError
from streamserve.types import StructuredOutputs
from tests.server.apis.openai.tool_chats import CLOCK, ONE_CALL, TEMPLATE, TWO_CALLS, WEATHER
from tests.support.live_server import live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

CHAT: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "say"}]}
WITH_TOOLS = {**CHAT, "tools": [WEATHER, CLOCK]}
NULLS = dict.fromkeys(["refusal", "annotations", "audio", "function_call", "reasoning", "reasoning_content"])
"""What vLLM has in every message, null where there is nothing."""


async def ask(text: str, body: dict[str, Any], **config: Any) -> tuple[dict[str, Any], ScriptedEngine]:
    """The choice of a whole answer in which the model writes `text`."""
    engine = ScriptedEngine(reply=text_reply(text))
    async with live_server(engine, **{"chat_template": TEMPLATE, **config}) as server:
        async with request(server.port, "POST", "/v1/chat/completions", body) as response:
            answer = json.loads(await response.body())
            assert response.status == 200, answer
    return answer["choices"][0], engine


async def stream(text: str, body: dict[str, Any], **config: Any) -> list[dict[str, Any]]:
    """The choices of a streamed one, event by event."""
    engine = ScriptedEngine(reply=text_reply(text))
    async with live_server(engine, **{"chat_template": TEMPLATE, **config}) as server:
        async with request(server.port, "POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            *chunks, done = events(await response.body())
    assert done == "[DONE]"
    return [chunk["choices"][0] for chunk in chunks]


async def refusal(body: dict[str, Any], **config: Any) -> dict[str, Any]:
    async with live_server(ScriptedEngine(reply=text_reply("a")), **{"chat_template": TEMPLATE, **config}) as server:
        async with request(server.port, "POST", "/v1/chat/completions", body) as response:
            assert response.status == 400
            error: dict[str, Any] = json.loads(await response.body())["error"]
            return error


def collected(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the deltas."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for choice in choices:
        delta = choice["delta"]
        for name in ("content", "reasoning_content"):
            message[name] += delta.get(name) or ""
        for call in delta.get("tool_calls", []):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                message["tool_calls"].append({"name": call["function"]["name"], "arguments": "", "id": call["id"]})
                assert call["type"] == "function"
            message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return message


def prompt_of(engine: ScriptedEngine) -> str:
    return bytes(next(iter(engine.specs.values())).prompt_token_ids).decode()


async def test_calls_are_taken_out_of_the_text() -> None:
    choice, engine = await ask(TWO_CALLS, WITH_TOOLS)
    message = choice["message"]
    assert message["content"] == "Let me see."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "北京"}'},
        {"name": "clock", "arguments": "{}"},
    ]
    assert all(set(call) == {"id", "type", "function"} and call["type"] == "function" for call in message["tool_calls"])
    assert len({call["id"] for call in message["tool_calls"]}) == 2
    assert choice["finish_reason"] == "tool_calls"
    assert prompt_of(engine).startswith('<tools>[{"type": "function", "function": {"name": "weather"')


async def test_content_is_null_when_there_are_only_calls_and_a_text_without_calls_is_content() -> None:
    choice, _ = await ask(ONE_CALL, WITH_TOOLS)
    assert choice["message"]["content"] is None
    choice, _ = await ask("Hello <tool", WITH_TOOLS)
    assert (choice["message"], choice["finish_reason"]) == (
        {"role": "assistant", "content": "Hello <tool", **NULLS},
        "stop",
    )


async def test_a_streamed_call_begins_with_its_name_and_its_arguments_come_in_fragments() -> None:
    choices = await stream(TWO_CALLS, WITH_TOOLS)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    starts = [call for choice in choices for call in choice["delta"].get("tool_calls", []) if "id" in call]
    assert [(call["index"], call["function"]) for call in starts] == [
        (0, {"name": "weather", "arguments": ""}),
        (1, {"name": "clock", "arguments": ""}),
    ]
    message = collected(choices)
    assert message["content"] == "Let me see."
    assert [call["arguments"] for call in message["tool_calls"]] == ['{"city": "北京"}', "{}"]
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["tool_calls"]
    assert choices[-1]["delta"] == {}


async def test_each_token_of_the_arguments_is_sent_as_it_comes() -> None:
    engine = ScriptedEngine()
    body = {**WITH_TOOLS, "stream": True}
    async with (
        live_server(engine, chat_template=TEMPLATE) as server,
        request(server.port, "POST", "/v1/chat/completions", body) as response,
    ):
        [sequence] = await engine.sequences()
        engine.say(sequence, '<tool_call>{"name": "weather", "arguments":')
        role, start = events(await response.chunk() or b"")
        assert (role["choices"][0]["delta"]["role"], "id" in start["choices"][0]["delta"]["tool_calls"][0]) == (
            "assistant",
            True,
        )
        for letter in '{"city"':
            engine.say(sequence, letter)
            [chunk] = events(await response.chunk() or b"")
            assert chunk["choices"][0]["delta"] == {"tool_calls": [{"index": 0, "function": {"arguments": letter}}]}


async def test_one_call_at_most_without_parallel_tool_calls() -> None:
    choice, _ = await ask(TWO_CALLS, {**WITH_TOOLS, "parallel_tool_calls": False})
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]


async def test_tools_not_to_be_called_are_shown_or_left_out_and_the_text_stays_as_it_is() -> None:
    body = {**WITH_TOOLS, "tool_choice": "none"}
    choice, engine = await ask(ONE_CALL, body)
    assert (choice["message"]["content"], choice["finish_reason"]) == (ONE_CALL, "stop")
    assert "<tools>" in prompt_of(engine)
    _, engine = await ask(ONE_CALL, body, exclude_tools_when_tool_choice_none=True)
    assert "<tools>" not in prompt_of(engine)


PLAIN = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""A template that knows no tools."""


@pytest.mark.parametrize(("template", "text"), [(TEMPLATE, ONE_CALL), (PLAIN, '{"city": "北京"}')], ids=["marked", "json"])
async def test_a_named_function_gets_its_schema_as_grammar(template: str, text: str) -> None:
    body = {**WITH_TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    choice, engine = await ask(text, body, chat_template=template)
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None
    if template is PLAIN:
        assert spec.structured_outputs.json == WEATHER["function"]["parameters"]
    else:
        grammar = spec.structured_outputs.grammar or ""
        assert all(
            part in grammar for part in ("<tool_call>", '{"const": "weather"}', json.dumps({"city": {"type": "string"}}))
        )
        assert "clock" not in grammar
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "北京"}'}
    assert (choice["message"]["content"], choice["finish_reason"]) == (None, "stop"), "as the OpenAI API ends a named call"
    streamed = collected(await stream(text, body, chat_template=template))
    assert streamed["tool_calls"][0]["arguments"] == '{"city": "北京"}'


async def test_a_required_call_is_an_array_of_calls_where_the_model_has_no_dialect() -> None:
    body = {**WITH_TOOLS, "tool_choice": "required"}
    text = '[{"name": "clock", "parameters": {}}, {"name": "weather", "parameters": {"city": "x"}}]'
    choice, engine = await ask(text, body, chat_template=PLAIN)
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None
    assert isinstance(spec.structured_outputs.json, dict)
    assert spec.structured_outputs.json["minItems"] == 1
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["clock", "weather"]
    assert choice["finish_reason"] == "tool_calls"
    choices = await stream(text, body, chat_template=PLAIN)
    assert [call["name"] for call in collected(choices)["tool_calls"]] == ["clock", "weather"]
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_required_calls_are_written_as_the_model_writes_them_after_its_reasoning() -> None:
    body = {**WITH_TOOLS, "tool_choice": "required"}
    calls = TWO_CALLS.removeprefix("Let me see.\n")
    choice, engine = await ask(f"<think>\nhm\n</think>\n\n{calls}", body)
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None
    assert "<tool_call>" in (spec.structured_outputs.grammar or "")
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather", "clock"]
    assert (choice["message"]["reasoning"], choice["finish_reason"]) == ("hm", "tool_calls")


async def test_forced_calls_need_no_model_that_knows_tools_but_free_ones_do() -> None:
    choice, _ = await ask(
        '[{"name": "clock", "parameters": {}}]', {**WITH_TOOLS, "tool_choice": "required"}, chat_template=PLAIN
    )
    assert choice["message"]["tool_calls"]
    error = await refusal(WITH_TOOLS, chat_template=PLAIN)
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
    choice, _ = await ask(ONE_CALL, WITH_TOOLS, chat_template=PLAIN, tool_call_parser="hermes")
    assert choice["message"]["tool_calls"]


async def test_a_server_that_must_read_calls_does_not_serve_a_model_that_writes_none() -> None:
    with pytest.raises(ConfigError, match="--tool-call-parser"):
        async with live_server(ScriptedEngine(), enable_auto_tool_choice=True):
            pytest.fail("it can't start")
    async with live_server(ScriptedEngine(), enable_auto_tool_choice=True, tool_call_parser="mistral"):
        pass


async def test_mistral_calls_have_ids_that_its_template_takes() -> None:
    template = TEMPLATE.replace("<tool_call>", "[TOOL_CALLS]")
    choice, _ = await ask('[TOOL_CALLS][{"name": "clock", "arguments": {}}]', WITH_TOOLS, chat_template=template)
    [call] = choice["message"]["tool_calls"]
    assert len(call["id"]) == 9
    assert call["id"].isalnum()


async def test_reasoning_comes_before_content_in_a_field_of_its_own() -> None:
    text = "<think>\nhm, hm\n</think>\n\nyes"
    choice, _ = await ask(text, CHAT)
    reasoning = {"reasoning": "hm, hm", "reasoning_content": "hm, hm"}
    assert choice["message"] == {"role": "assistant", "content": "yes", **NULLS, **reasoning}
    choices = await stream(text, CHAT)
    message = collected(choices)
    assert "".join(choice["delta"].get("reasoning", "") for choice in choices) == "hm, hm", "as vLLM names it today"
    assert (message["reasoning_content"], message["content"]) == ("hm, hm", "yes")
    kinds = [next(iter(choice["delta"]), None) for choice in choices]
    assert kinds.index("reasoning") < kinds.index("content")
    assert choices[-1]["finish_reason"] == "stop"


async def test_reasoning_that_is_cut_short_leaves_no_content() -> None:
    engine = ScriptedEngine(reply=text_reply("<think>so", "length"))
    async with live_server(engine, chat_template=TEMPLATE) as server:
        async with request(server.port, "POST", "/v1/chat/completions", CHAT) as response:
            [choice] = json.loads(await response.body())["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("so", None)
    assert choice["finish_reason"] == "length"


async def test_documents_go_to_a_template_that_has_a_place_for_them() -> None:
    template = "{% for document in documents or [] %}[{{ document.text }}]{% endfor %}" + TEMPLATE
    _, engine = await ask("a", {**CHAT, "documents": [{"title": "b", "text": "c"}]}, chat_template=template)
    assert prompt_of(engine).startswith("[c]")


async def test_default_variables_of_the_template_give_way_to_those_of_a_request_and_to_its_effort() -> None:
    config = {"default_chat_template_kwargs": {"enable_thinking": False}}
    off = "<assistant><think>\n\n</think>\n\n"
    for body, is_off in (
        ({}, True),
        ({"chat_template_kwargs": {"enable_thinking": True}}, False),
        ({"chat_template_kwargs": {"other": 1}}, True),
        ({"reasoning_effort": "high"}, False),
    ):
        _, engine = await ask("a", {**CHAT, **body}, **config)
        assert prompt_of(engine).endswith(off) is is_off
    _, engine = await ask("a", {**CHAT, "reasoning_effort": "none"}, default_chat_template_kwargs={"enable_thinking": True})
    assert prompt_of(engine).endswith(off)
    with pytest.raises(ConfigError, match="--default-chat-template-kwargs: a conversation sets tools by itself"):
        await ask("a", CHAT, default_chat_template_kwargs={"tools": []})


async def test_thinking_is_turned_off_in_the_template_and_the_text_is_then_content() -> None:
    for body in ({"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}):
        choice, engine = await ask("<think>is only a word", {**CHAT, **body})
        assert prompt_of(engine).endswith("<assistant><think>\n\n</think>\n\n")
        assert choice["message"]["content"] == "<think>is only a word"
    _, engine = await ask("a", {**CHAT, "reasoning_effort": "high"}, chat_template="{{ reasoning_effort }}!")
    assert prompt_of(engine) == "high!"


async def test_every_token_is_accounted_for_once_whatever_becomes_of_its_text() -> None:
    text = "<think>\nhm\n</think>\n\n" + TWO_CALLS
    body = {**WITH_TOOLS, "logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    whole, _ = await ask(text, body)
    choices = await stream(text, body)
    told = [token for choice in choices if choice["logprobs"] for token in choice["logprobs"]["content"]]
    assert told == whole["logprobs"]["content"]
    assert bytes(byte for token in told for byte in token["bytes"]).decode() == text + "</s>"
    assert [token_id for choice in choices for token_id in choice.get("token_ids", [])] == whole["token_ids"]
    message = collected(choices)
    assert (message["reasoning_content"], message["content"]) == ("hm", "Let me see.")


async def grammar_of(body: dict[str, Any], **config: Any) -> StructuredOutputs | None:
    """What the engine is told to keep to."""
    _, engine = await ask("a", body, **config)
    [spec] = engine.specs.values()
    return spec.structured_outputs


def allowing(mode: str, *names: str) -> dict[str, Any]:
    tools = [{"type": "function", "function": {"name": name}} for name in names]
    return {**WITH_TOOLS, "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": tools}}}


async def test_of_the_tools_that_the_model_is_told_only_allowed_ones_can_be_called() -> None:
    _, engine = await ask("a", allowing("auto", "clock"))
    prompt = prompt_of(engine)
    assert '"weather"' in prompt
    assert '"clock"' in prompt
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None
    grammar = spec.structured_outputs.grammar or ""
    assert '"clock"' in grammar
    assert '"weather"' not in grammar
    forced = await grammar_of(allowing("required", "clock"))
    assert forced is not None
    assert '{"const": "clock"}' in (forced.grammar or "")
    assert '"weather"' not in (forced.grammar or "")


async def test_reasoning_that_is_not_wanted_is_left_out_and_still_counted() -> None:
    text = "<think>\nhm, hm\n</think>\n\nyes"
    body = {**CHAT, "include_reasoning": False, "return_token_ids": True}
    choice, _ = await ask(text, body)
    assert choice["message"] == {"role": "assistant", "content": "yes", **NULLS}
    choices = await stream(text, body)
    message = collected(choices)
    assert (message["reasoning_content"], message["content"]) == ("", "yes")
    assert [token_id for choice in choices for token_id in choice.get("token_ids", [])] == choice["token_ids"]


async def test_free_answers_are_confined_only_where_something_is_asked_of_them() -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    assert await grammar_of(WITH_TOOLS) is None
    for body in (
        {**CHAT, "tools": [strict, CLOCK]},
        {**WITH_TOOLS, "response_format": schema},
        {**WITH_TOOLS, "response_format": {"type": "json_object"}},
        {**CHAT, "response_format": schema},
    ):
        wanted = await grammar_of(body)
        assert wanted is not None
        assert "%json" in (wanted.grammar or "")
        assert ("<think>" in (wanted.grammar or "")) is ("response_format" in body)
        assert ("<tool_call>" in (wanted.grammar or "")) is ("tools" in body)
    thoughtless = {"chat_template_kwargs": {"enable_thinking": False}}
    assert await grammar_of({**CHAT, "response_format": schema, **thoughtless}) == StructuredOutputs(json={"type": "object"})
    assert await grammar_of({**WITH_TOOLS, "guided_regex": "a+"}) == StructuredOutputs(regex="a+")


async def test_what_is_strict_is_no_concern_of_the_prompt() -> None:
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    _, engine = await ask("a", {**CHAT, "tools": [strict]})
    assert "strict" not in prompt_of(engine)


async def test_a_json_answer_comes_after_reasoning_or_calls_come_instead() -> None:
    body = {**WITH_TOOLS, "response_format": {"type": "json_object"}}
    choice, _ = await ask('<think>\nhm\n</think>\n\n{"a": 1}', body)
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ('{"a": 1}', "hm")
    choice, _ = await ask(ONE_CALL, body)
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["weather"]


async def test_json_that_looks_like_a_call_is_content_when_json_was_asked_for() -> None:
    text = '{"name": "weather", "arguments": {}}'
    for body in ({"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": ".*"}}):
        choice, _ = await ask(text, {**WITH_TOOLS, **body}, tool_call_parser="llama3_json")
        assert choice["message"]["content"] == text


async def test_calls_and_their_results_reach_the_template() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}
    messages = [
        {"role": "user", "content": "say"},
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "function_call": None},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "sunny"}]},
        {"role": "assistant", "content": "It is sunny.", "tool_calls": None},
    ]
    _, engine = await ask("ok", {**CHAT, "messages": messages})
    assert prompt_of(engine) == (
        '<user>say<assistant><tool_call>{"name": "weather", "arguments": {"city": "北京"}}</tool_call>'
        "<tool>sunny<assistant>It is sunny.<assistant>"
    )


def assistant_with(call: Any) -> dict[str, Any]:
    return {**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "tool_calls": call}]}


def tool(**fields: Any) -> dict[str, Any]:
    return {**CHAT, "tools": [WEATHER, {"type": "function", "function": {"name": "b", **fields}}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({**CHAT, "tools": [{"type": "custom", "custom": {}}]}, "tools[0].type"),
        ({**CHAT, "tools": [{"type": "function"}]}, "tools[0].function"),
        ({**CHAT, "tools": "weather"}, "tools"),
        (tool(name="two words"), "tools[1].function.name"),
        (tool(name="weather"), "tools[1].function.name"),
        (tool(name=7), "tools[1].function.name"),
        (tool(parameters=[]), "tools[1].function.parameters"),
        (tool(parameters={"type": "string"}), "tools[1].function.parameters.type"),
        (tool(description=1), "tools[1].function.description"),
        (tool(strict="yes"), "tools[1].function.strict"),
        ({**WITH_TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({**CHAT, "tool_choice": "required"}, "tool_choice"),
        ({**WITH_TOOLS, "tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice.function.name"),
        ({**WITH_TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({**WITH_TOOLS, "tool_choice": {"type": "custom", "custom": {"name": "a"}}}, "tool_choice.type"),
        ({**WITH_TOOLS, "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools"),
        (allowing("never", "clock"), "tool_choice.allowed_tools.mode"),
        (allowing("auto"), "tool_choice.allowed_tools.tools"),
        (allowing("auto", "clock", "nope"), "tool_choice.allowed_tools.tools[1].function.name"),
        ({**allowing("auto", "clock"), "tools": None}, "tool_choice"),
        ({**WITH_TOOLS, "tool_choice": "required", "guided_regex": "a"}, "guided_regex"),
        (assistant_with("x"), "messages[1].tool_calls"),
        (assistant_with([{"id": "a"}]), "messages[1].tool_calls[0].function"),
        (assistant_with([{"function": {"name": "a", "arguments": "{"}}]), "messages[1].tool_calls[0].function.arguments"),
        (assistant_with([{"function": {"name": "a", "arguments": "[]"}}]), "messages[1].tool_calls[0].function.arguments"),
        (assistant_with([{"id": 1, "function": {"name": "a"}}]), "messages[1].tool_calls[0].id"),
        ({**CHAT, "messages": [{"role": "tool", "tool_call_id": 3, "content": "a"}]}, "messages[0].tool_call_id"),
        ({**CHAT, "messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
    ],
)
async def test_a_mistake_is_named_by_its_place(body: dict[str, Any], param: str) -> None:
    assert (await refusal(body))["param"] == param


async def test_tokenize_counts_the_tools_too() -> None:
    async with live_server(ScriptedEngine(), chat_template=TEMPLATE) as server:
        counts = []
        for tools in ([], [WEATHER]):
            body = {"messages": CHAT["messages"], "tools": tools}
            async with request(server.port, "POST", "/tokenize", body) as response:
                counts.append(json.loads(await response.body())["count"])
    assert counts[1] > counts[0] + 50


async def test_a_call_whose_arguments_are_cut_is_not_reported_as_made() -> None:
    """A model that leaves out a closing bracket or quote: cut arguments came with finish_reason "tool_calls"."""
    choice, _ = await ask('<tool_call>{"name": "weather", "arguments": {"city": "Par', WITH_TOOLS)
    assert choice["finish_reason"] == "stop"
    choice, _ = await ask('<tool_call>{"name": "weather", "arguments": {"city": "Paris"', WITH_TOOLS)
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Paris"}'
    assert choice["finish_reason"] == "tool_calls"


async def test_json_that_names_no_offered_function_is_the_answer() -> None:
    """A request for JSON with a `name`, of a model whose calls are bare JSON, came back as a call of that name."""
    text = '{"name": "Bob", "parameters": {"age": 3}}'
    choice, _ = await ask(text, WITH_TOOLS, tool_call_parser="llama3_json")
    assert choice["message"]["content"] == text
    assert choice["finish_reason"] == "stop"


async def test_what_of_a_strict_tool_is_beyond_grammars_is_named_in_a_warning() -> None:
    parameters = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}, "required": ["tags"]}
    strict = {"type": "function", "function": {"name": "tag", "parameters": parameters, "strict": True}}
    engine = ScriptedEngine(reply=text_reply("a"))
    async with live_server(engine, chat_template=TEMPLATE) as server:
        async with request(server.port, "POST", "/v1/chat/completions", {**CHAT, "tools": [strict]}) as response:
            await response.body()
            assert response.status == 200
            assert "tools.tag.uniqueItems" in dict(response.headers)["warning"]
    [spec] = engine.specs.values()
    assert spec.structured_outputs is not None
    assert "uniqueItems" not in (spec.structured_outputs.grammar or "")
