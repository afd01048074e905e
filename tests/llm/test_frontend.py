"""The API side of an engine, over an engine that does what the test says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import msgspec
import pytest

from streamserve.errors import InvalidParameter, QueueFull, UnsupportedParameter
from streamserve.frontend import LONG_TEXT, Frontend
from streamserve.text.loading import TokenizerParts
from streamserve.text.tokenizers.token_codec import TokenCodec
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.text_stream import TextStream
from streamserve.types import SamplingParams, TextDelta, TokenDelta
from tests.support.byte_tokenizer import EOS, VOCAB_SIZE, ByteVocabulary, byte_tokenizer
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio


def frontend(engine: ScriptedEngine) -> Frontend:
    return Frontend(engine, byte_tokenizer(), eos_token_ids=[EOS])


async def read(stream: TextStream) -> list[TextDelta]:
    return [delta async for delta in stream]


async def test_a_text_arrives_delta_by_delta() -> None:
    stream = await frontend(ScriptedEngine(reply=text_reply("秋a"))).generate("p", SamplingParams(max_tokens=9))
    deltas = await read(stream)
    assert [(delta.text, delta.finish_reason) for delta in deltas] == [("秋", None), ("a", None), ("", "stop")]
    assert deltas[-1].stop_reason is None


async def test_the_choices_of_several_prompts_are_numbered_and_interleaved() -> None:
    engine = ScriptedEngine()
    front = frontend(engine)
    prompts = [await front.prepare(text, SamplingParams(n=2), request_id=text) for text in ("a", "b")]
    with await front.open(prompts) as stream:
        for sequence_id in ("b-1", "a-0", "b-0", "a-1"):
            engine.say(sequence_id, sequence_id)
        deltas = [await anext(stream) for _ in range(12)]
        texts = {index: "".join(delta.text for delta in deltas if delta.index == index) for index in range(4)}
        assert texts == {0: "a-0", 1: "a-1", 2: "b-0", 3: "b-1"}
        assert [delta.index for delta in deltas[:4]] == [3, 0, 2, 1], "no choice waits for another's text to be read"
        for sequence_id in ("a-0", "a-1", "b-0", "b-1"):
            engine.finish(sequence_id, "length")
        assert [delta.finish_reason for delta in await read(stream)] == ["length"] * 4
    assert engine.aborted == []


async def test_a_stop_string_ends_the_sequence_on_the_engine_too() -> None:
    engine = ScriptedEngine()
    stream = await frontend(engine).generate("p", SamplingParams(stop="."), request_id="r")
    engine.say("r-0", "one. two")
    deltas = await read(stream)
    assert "".join(delta.text for delta in deltas) == "one"
    assert deltas[-1].stop_reason == "."
    assert engine.aborted == ["r-0"]


async def test_leaving_the_block_aborts_what_still_runs() -> None:
    engine = ScriptedEngine()
    with await frontend(engine).generate("p", SamplingParams(n=2), request_id="r") as stream:
        engine.finish("r-0", "length")
        await anext(stream)
        assert stream.sequence_ids == ["r-1"]
    assert engine.aborted == ["r-1"]
    assert await read(stream) == []


async def test_breaking_out_of_the_loop_aborts() -> None:
    engine = ScriptedEngine()
    front = frontend(engine)

    async def read_one() -> None:
        async for _ in await front.generate("p", SamplingParams(), request_id="r"):
            break

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read_one)
        await engine.sequences()
        engine.say("r-0", "ab")
    assert engine.aborted == ["r-0"]


async def test_an_aborted_request_keeps_what_was_generated() -> None:
    engine = ScriptedEngine()
    stream = await frontend(engine).generate("p", SamplingParams(), request_id="r")
    engine.say("r-0", "half")
    stream.abort()
    deltas = await read(stream)
    assert "".join(delta.text for delta in deltas) == "half"
    assert deltas[-1].finish_reason == "abort"


async def test_closing_ends_a_waiting_reader() -> None:
    stream = await frontend(ScriptedEngine()).generate("p", SamplingParams())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, stream)
        await anyio.wait_all_tasks_blocked()
        stream.close()


async def test_two_readers_of_one_stream_are_a_mistake() -> None:
    stream = await frontend(ScriptedEngine()).generate("p", SamplingParams())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read, stream)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(anyio.BusyResourceError):
            await anext(stream)
        stream.close()


async def test_a_failed_choice_ends_with_its_error() -> None:
    engine = ScriptedEngine()
    stream = await frontend(engine).generate("p", SamplingParams(), request_id="r")
    engine.fail("r-0", "slow_consumer", "too slow")
    [delta] = await read(stream)
    assert delta.finish_reason == "error"
    assert delta.error is not None
    assert delta.error.code == "slow_consumer"


@pytest.mark.parametrize("option", [{"request_id": 7}, {"priority": "high"}, {"cache_salt": 1}])
async def test_an_option_of_a_wrong_type_is_refused_by_name(option: dict[str, Any]) -> None:
    engine = ScriptedEngine()
    with pytest.raises(InvalidParameter) as refusal:
        await frontend(engine).generate("p", SamplingParams(), **option)
    assert [refusal.value.param] == list(option)
    assert engine.specs == {}


async def test_a_refused_request_raises_and_leaves_nothing() -> None:
    engine = ScriptedEngine()
    engine.refuse = QueueFull("full")
    with pytest.raises(QueueFull):
        await frontend(engine).generate("p", SamplingParams())
    assert engine.specs == {}


async def test_a_lagging_reader_gets_fewer_and_longer_deltas() -> None:
    engine = ScriptedEngine()
    stream = await frontend(engine).generate("p", SamplingParams(), request_id="r")
    engine.say("r-0", "x" * 200)
    engine.finish("r-0", "length")
    deltas = await read(stream)
    assert "".join(delta.text for delta in deltas) == "x" * 200
    assert len(deltas) < 40


async def test_a_long_prompt_is_tokenised_off_the_loop() -> None:
    threads = []

    class Watched(ByteVocabulary):
        def encode(self, texts, add_special_tokens):  # type: ignore[no-untyped-def]
            import threading

            threads.append(threading.current_thread() is threading.main_thread())
            return super().encode(texts, add_special_tokens)

    front = Frontend(ScriptedEngine(max_model_len=1 << 20), Tokenizer(TokenizerParts(Watched())))
    await front.prepare("x" * LONG_TEXT, SamplingParams())
    await front.prepare("x", SamplingParams())
    await front.encode("x" * LONG_TEXT)
    assert threads == [False, True, False]


async def test_a_chat_uses_the_models_template_or_the_given_one() -> None:
    messages = [{"role": "user", "content": "Hi"}]
    front = frontend(ScriptedEngine())
    assert front.render_chat(messages) == "<user>Hi\n<assistant>"
    assert front.render_chat(messages, chat_template="{{ messages[0].content }}!") == "Hi!"
    with pytest.raises(InvalidParameter, match=r"chat_template: .*syntax"):
        front.render_chat(messages, chat_template="{% if %}")
    bare = Frontend(ScriptedEngine(), Tokenizer(TokenizerParts(ByteVocabulary())))
    with pytest.raises(UnsupportedParameter, match="--chat-template"):
        bare.render_chat(messages)
    own = Frontend(ScriptedEngine(), byte_tokenizer(), chat_template="fixed")
    assert own.render_chat(messages) == "fixed"


async def test_a_text_ends_at_each_end_that_a_configuration_or_the_tokenizer_names() -> None:
    """A fine-tune whose config.json and tokenizer name different ends ran on to max_tokens, its end of turn ignored."""
    front = Frontend(ScriptedEngine(), byte_tokenizer(), eos_token_ids=[7, VOCAB_SIZE])
    prompt = await front.prepare("p", SamplingParams())
    assert prompt.specs[0].sampling.stop_token_ids == [7, EOS]
    unbounded = await front.prepare("p", SamplingParams(ignore_eos=True))
    assert unbounded.specs[0].sampling.stop_token_ids == []


def test_a_conversation_with_tools_is_written_by_the_template_for_tools() -> None:
    parts = TokenizerParts(ByteVocabulary(), {}, {"default": "plain", "tool_use": "{{ tools[0].function.name }}"})
    front = Frontend(ScriptedEngine(), Tokenizer(parts))
    assert front.render_chat([{"role": "user", "content": "Hi"}]) == "plain"
    tools = [{"type": "function", "function": {"name": "clock"}}]
    assert front.render_chat([{"role": "user", "content": "Hi"}], tools=tools) == "clock"
    assert front.tool_template is not None
    assert front.tool_template.source == front.template(has_tools=True).source


class MarkedVocabulary(ByteVocabulary):
    """Bytes, and two special tokens beyond them."""

    size = 260
    special_ids = frozenset({EOS, 258, 259})
    codec = TokenCodec(lambda token: token.encode() if len(token) > 1 else bytes([ord(token)]))

    def token(self, token_id: int) -> str | None:
        return {258: "<mark>", 259: "<other>"}.get(token_id) or super().token(token_id)

    def token_id(self, token: str) -> int | None:
        return {"<mark>": 258, "<other>": 259}.get(token) or super().token_id(token)


async def test_a_special_token_has_text_for_those_who_must_see_it() -> None:
    engine = ScriptedEngine()
    front = Frontend(engine, Tokenizer(TokenizerParts(MarkedVocabulary(), {}, {})), eos_token_ids=[EOS])
    assert front.special_ids_of(["<mark>", "a", "unknown"]) == {"<mark>": 258}
    for shown, text in ((frozenset({258}), "a<mark>b"), (frozenset(), "ab")):
        prompt = await front.prepare("p", SamplingParams(), request_id=text, shown_special_ids=shown)
        with await front.open([prompt]) as stream:
            engine.generate(f"{text}-0", TokenDelta([97, 258, 259, 98], finish_reason="length"))
            assert "".join([delta.text async for delta in stream]) == text


class EndWritten(ByteVocabulary):
    """The end of sequence is written §."""

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [[EOS if letter == "§" else ord(letter) for letter in text] for text in texts]


def unembedded(template: str) -> str | None:
    """The answer of a model whose tokens are all but the end of sequence."""
    engine = ScriptedEngine()
    engine.info = msgspec.structs.replace(engine.info, vocab_size=EOS)
    return Frontend(engine, Tokenizer(TokenizerParts(EndWritten())), chat_template=template).unembedded_template_token()


async def test_a_template_that_needs_a_token_without_an_embedding_is_known_before_any_chat() -> None:
    """Fine-tunes add tokens to tokenizer and template but not to the model: each chat was refused, and the start was not."""
    assert unembedded("{{ messages[0].content }}§") == "</s>"
    assert unembedded("{{ messages[0].content }}") is None
    assert unembedded("{% if messages | length > 1 %}§{% endif %}a") is None
    assert unembedded("{{ raise_exception('needs a system prompt') }}§") is None
