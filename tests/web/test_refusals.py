"""Questions that bring nothing: refused, stopped, without a key, without a server. None is lost, and none spoils its chat."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamserve.errors import QueueFull
from tests.support.scripted_engine import text_reply
from tests.web.conftest import Open, Stage
from tests.web.page import CONTROL, ENTER, ChatPage

pytestmark = pytest.mark.slow

SetStage = Callable[..., Stage]

FULL = QueueFull("come back later")


def _wait_for_ending(page: ChatPage, text: str) -> None:
    page.until(lambda: text in "".join(page.endings[-1:]))


def _prompts(scene: Stage) -> list[bytes]:
    return [bytes(spec.prompt_token_ids) for spec in scene.engine.specs.values()]


def test_a_refused_question_comes_back_to_be_changed_and_is_not_sent_again(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    page.ask("one")
    page.wait_for_answer("fine")
    page.until(lambda: not page.is_streaming)
    page.ask("x" * 5000)
    _wait_for_ending(page, "maximum context length")
    assert page.draft == "x" * 5000
    page.find("#prompt").clear()
    page.ask("two")
    page.until(lambda: page.answers == ["fine", "", "fine"])
    assert _prompts(scene)[-1] == b"<user>one\n<assistant>fine\n<user>two\n<assistant>"


def test_what_was_typed_meanwhile_is_not_replaced_by_a_refused_question(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    scene.hold_admissions()
    page.ask("hello")
    page.type("and then")
    scene.refuse(FULL)
    scene.let_in()
    _wait_for_ending(page, "come back later")
    assert page.draft == "and then"
    assert page.questions == ["hello"]


def test_a_refused_question_comes_back_to_its_own_chat(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    scene.hold_admissions()
    page.ask("apples")
    page.type(CONTROL + "k")
    scene.refuse(FULL)
    scene.let_in()
    page.until(lambda: not page.all(".chat .streaming"))
    assert page.draft == ""
    page.all(".chat button:first-child")[1].click()
    assert page.draft == "apples"
    scene.refuse(None)
    page.find(".regenerate").click()
    scene.sequences()
    assert page.draft == ""


def test_an_answer_that_can_not_be_made_again_stays(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    page.ask("hello")
    page.wait_for_answer("fine")
    page.until(lambda: not page.is_streaming)
    scene.refuse(FULL)
    page.find(".regenerate").click()
    _wait_for_ending(page, "come back later")
    assert page.answers == ["fine"]
    assert page.draft == ""
    assert open_page(scene.url).answers == ["fine"]


def test_a_question_stopped_before_anything_came_can_be_changed(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    scene.sequences()
    page.find("#stop").click()
    assert page.draft == "hello"
    page.type(" there" + ENTER)
    scene.sequences(2)
    assert _prompts(scene)[-1] == b"<user>hello there\n<assistant>"


def test_a_question_too_long_for_the_server_costs_no_other_chat_its_line(stage: SetStage, open_page: Open) -> None:
    scene = stage(max_body_bytes=4000)
    page = open_page(scene.url)
    page.ask("apples")
    [sequence] = scene.sequences()
    scene.say(sequence, "red")
    page.wait_for_answer("red")
    page.type(CONTROL + "k")
    page.script("document.getElementById('prompt').value = 'x'.repeat(5000)")
    page.type("x" + ENTER)
    _wait_for_ending(page, "too long for this server")
    assert page.draft == "x" * 5001
    page.all(".chat button:first-child")[1].click()
    scene.say(sequence, " and yellow")
    page.wait_for_answer("red and yellow")


def test_without_a_key_the_question_stays_in_the_composer_and_the_key_is_asked_for(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"), api_keys=["sesame"])
    page = open_page(scene.url, connection="refused")
    page.ask("hello")
    assert page.draft == "hello"
    assert page.questions == []
    assert page.script("return document.activeElement.name") == "api_key"
    page.set("api_key", "sesame")
    page.until(lambda: page.connection == "connected")
    page.type(ENTER)
    page.wait_for_answer("fine")


def test_an_answer_that_waits_for_the_server_says_so_and_does_not_blink(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "half")
    page.wait_for_answer("half")
    assert len(page.all(".live")) == 1
    scene.stop()
    _wait_for_ending(page, "waiting for the server")
    assert page.texts("#connection") == page.endings
    assert page.all(".live, .streaming") == []
    page.find("#stop").click()
    assert not page.is_streaming
    assert page.answers == ["half"]
    assert page.endings[0].startswith("stopped")


def test_a_question_sent_while_the_server_is_away_is_answered_once_it_is_back(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    scene.stop()
    page.until(lambda: page.connection == "away")
    page.ask("hello")
    assert page.questions == ["hello"]
    scene.start()
    page.wait_for_answer("fine")
    assert scene.engine.num_asked == 1


def test_a_server_that_comes_back_with_a_key_asks_for_it_where_the_answer_was_to_be(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    scene.stop()
    page.until(lambda: page.connection == "away")
    page.ask("hello")
    scene.config["api_keys"] = ["sesame"]
    scene.start()
    _wait_for_ending(page, "API key needed")
    page.set("api_key", "sesame")
    [sequence] = scene.sequences()
    scene.say(sequence, "here")
    page.wait_for_answer("here")


def test_the_model_of_a_restarted_server_is_the_one_asked(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"), model_names=["old"])
    page = open_page(scene.url)
    page.until(lambda: page.texts("#model") == ["old"])
    scene.stop()
    scene.config["model_names"] = ["new"]
    scene.start()
    page.until(lambda: page.texts("#model") == ["new"])
    page.ask("hello")
    page.wait_for_answer("fine")
