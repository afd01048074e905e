"""Chats as a person has them: answers that stream, stop, come again, go on after the line was cut."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from streamserve.types import TokenDelta
from streamserve.types.progress import PrefillProgress, QueueProgress
from tests.support.scripted_engine import text_reply
from tests.web.conftest import Open, Stage
from tests.web.page import CONTROL, ENTER, ESCAPE, SHIFT

pytestmark = pytest.mark.slow

SetStage = Callable[..., Stage]
TEXT = "北京的秋天，天高云淡🍂 and blue"


def test_tokens_are_shown_as_they_come_with_their_figures(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "one ")
    page.wait_for_answer("one")
    assert page.is_streaming
    scene.say(sequence, TEXT)
    page.wait_for_answer(f"one {TEXT}")
    page.until(lambda: re.fullmatch(r"TTFT \d+ ms · [\d.]+ tokens/s · \d+ tokens", page.figures))
    scene.finish(sequence)
    page.until(lambda: not page.is_streaming)
    assert "TTFT" in page.endings[-1]
    assert page.console == []


def test_what_goes_on_before_the_first_token_is_shown_until_it_comes(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.generate(sequence, TokenDelta([], progress=QueueProgress(3, 7.5)))
    page.until(lambda: page.endings == ["in line, place 3 · ~8 s"])
    scene.generate(sequence, TokenDelta([], progress=PrefillProgress(4096, 0, 1024, 80.0)))
    page.until(lambda: page.endings == ["reading 25 %"])
    scene.say(sequence, "one")
    page.wait_for_answer("one")
    page.until(lambda: page.endings == [""])
    assert page.console == []


def test_stop_keeps_the_partial_text_and_ends_the_sequence(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "half an ans")
    page.wait_for_answer("half an ans")
    page.find("#stop").click()
    assert scene.aborts() == [sequence]
    page.until(lambda: not page.is_streaming)
    assert page.answers == ["half an ans"]
    assert page.endings[0].startswith("stopped")


def test_a_model_that_thinks_can_be_told_to_answer(stage: SetStage, open_page: Open) -> None:
    scene = stage(reasoning_parser="qwen3")
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    button = page.find("#answer-now")
    assert not button.is_displayed(), "it has not begun to think"
    scene.say(sequence, "<think>hm, let me see. ")
    page.until(button.is_displayed)
    button.click()
    assert scene.told_to_answer() == [sequence]
    scene.say(sequence, "</think>42")
    page.wait_for_answer("42")
    page.until(lambda: not button.is_displayed())
    scene.finish(sequence)
    page.until(lambda: not page.is_streaming)
    assert page.console == []


def test_escape_stops(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    page.type(ESCAPE)
    assert scene.aborts() == [sequence]


def test_regenerate_replaces_the_last_answer(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    for number, text in enumerate(("first", "second"), 1):
        sequence = scene.sequences(number)[-1]
        scene.say(sequence, text)
        scene.finish(sequence)
        page.until(lambda: not page.is_streaming)
        assert page.answers == [text]
        page.script("document.querySelector('.regenerate').click()")
    prompts = [bytes(spec.prompt_token_ids) for spec in scene.engine.specs.values()]
    assert prompts[0] == prompts[1] == b"<user>hello\n<assistant>"


def test_two_chats_stream_at_once_on_one_socket(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("apples")
    page.type(CONTROL + "k")
    page.ask("pears")
    apples, pears = scene.sequences(2)
    scene.say(apples, "red")
    scene.say(pears, "green")
    page.wait_for_answer("green")
    assert len(page.all(".chat .streaming")) == 2
    assert scene.metric("streamserve:ws_streams") == 2
    assert scene.metric("streamserve:ws_connections") == 1
    page.all(".chat button:first-child")[1].click()
    page.wait_for_answer("red")
    scene.say(apples, " and yellow")
    page.wait_for_answer("red and yellow")
    scene.finish(apples)
    scene.finish(pears)
    page.until(lambda: not page.all(".chat .streaming"))


def test_a_line_cut_before_the_first_token_begins_nothing_twice(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.drop()
    scene.say(sequence, "here")
    scene.finish(sequence)
    page.wait_for_answer("here")
    page.until(lambda: not page.is_streaming)
    assert scene.engine.num_asked == 1


def test_an_answer_goes_on_where_the_line_was_cut(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    said = ""
    for piece in ("a", "北", "🍂", "z"):
        scene.say(sequence, piece)
        said += piece
        page.wait_for_answer(said)
        scene.drop()
        scene.say(sequence, "-")
        said += "-"
    page.wait_for_answer(said)
    scene.finish(sequence)
    page.until(lambda: not page.is_streaming)
    assert page.answers == [said]
    assert len(scene.engine.specs) == 1
    assert scene.engine.aborted == []


def test_stop_counts_while_the_line_is_down(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "abc")
    page.wait_for_answer("abc")
    page.script(
        "new MutationObserver((_, seen) => { seen.disconnect(); document.getElementById('stop').click(); })"
        ".observe(document.getElementById('connection'), { attributes: true })"
    )
    scene.drop()
    assert scene.aborts() == [sequence]
    page.until(lambda: not page.is_streaming)
    assert page.answers == ["abc"]


def test_parameters_reach_the_engine(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    page.set("system", "Be brief.")
    page.set("temperature", "0.3")
    page.set("top_p", "0.9")
    page.set("max_tokens", "77")
    page.set("seed", "5")
    page.ask("hello")
    page.wait_for_answer("fine")
    [spec] = scene.engine.specs.values()
    assert bytes(spec.prompt_token_ids) == b"<system>Be brief.\n<user>hello\n<assistant>"
    assert (spec.sampling.temperature, spec.sampling.top_p, spec.sampling.seed, spec.max_tokens) == (0.3, 0.9, 5, 77)


def test_a_refused_request_says_why_and_the_chat_goes_on(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    page.set("max_tokens", "999999")
    page.ask("hello")
    page.until(lambda: "failed" in "".join(page.endings))
    assert "maximum context length is 4096 tokens" in page.endings[0]
    page.set("max_tokens", "16")
    page.script("document.querySelector('.regenerate').click()")
    page.wait_for_answer("fine")


def test_shift_enter_breaks_the_line_and_enter_sends(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    page.type("one" + SHIFT + ENTER + SHIFT + "two")
    assert page.find("#prompt").get_attribute("value") == "one\ntwo"
    page.type(ENTER)
    page.wait_for_answer("fine")
    assert page.texts("article.user .content") == ["one\ntwo"]


def test_chats_outlive_a_reload(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply(TEXT))
    page = open_page(scene.url)
    page.ask("hello")
    page.wait_for_answer(TEXT)
    page.until(lambda: not page.is_streaming)
    assert open_page(scene.url).answers == [TEXT]


def test_a_key_is_asked_for_used_and_forgotten_with_the_tab(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"), api_keys=["sesame"])
    page = open_page(scene.url, connection="refused")
    page.set("api_key", "sesame")
    page.until(lambda: page.connection == "connected")
    page.ask("hello")
    page.wait_for_answer("fine")
    assert "sesame" not in page.script("return JSON.stringify(localStorage)")
