"""What was typed and what came outlives a reload, a crash, a server's end, and a storage that takes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.scripted_engine import text_reply
from tests.web.conftest import Open, Stage
from tests.web.page import CONTROL, ChatPage

pytestmark = pytest.mark.slow

SetStage = Callable[..., Stage]

FILL = """
for (let length = 1 << 23; length > 0; )
  try { localStorage.setItem(`filler${localStorage.length}`, "x".repeat(length)) } catch { length >>= 1 }
"""
EMPTY = "for (const key of Object.keys(localStorage)) if (key.startsWith('filler')) localStorage.removeItem(key)"
FORBID = """
for (const name of ["localStorage", "sessionStorage"])
  Object.defineProperty(window, name, { get() { throw new DOMException("not for this page", "SecurityError") } });
"""
SILENCE = """
for (const name of ["pagehide", "visibilitychange", "beforeunload"])
  addEventListener(name, (event) => event.stopImmediatePropagation(), true);
"""
"""Has a page learn nothing of its end, as one that crashes."""


def test_a_reload_before_the_first_token_loses_neither_question_nor_answer(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    page = open_page(scene.url)
    assert page.questions == ["hello"]
    scene.say(sequence, "here")
    page.wait_for_answer("here")
    scene.finish(sequence)
    page.until(lambda: not page.is_streaming)
    assert scene.engine.num_asked == 1


def test_stop_right_after_a_reload_ends_what_was_asked_before_it(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    page = open_page(scene.url)
    page.find("#stop").click()
    assert scene.aborts() == [sequence]
    assert page.draft == "hello"


def test_an_answer_goes_on_where_a_reload_cut_it(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    said = ""
    for piece in ("a", "北", "🍂"):
        scene.say(sequence, piece)
        said += piece
        page.wait_for_answer(said)
        page = open_page(scene.url)
        scene.say(sequence, "-")
        said += "-"
        page.wait_for_answer(said)
        assert page.is_streaming
    scene.finish(sequence)
    page.until(lambda: not page.is_streaming)
    assert page.answers == [said]
    assert "TTFT" in page.endings[0]
    assert scene.engine.aborted == []
    assert open_page(scene.url).answers == [said]


def test_what_came_while_no_tab_was_there_is_fetched(stage: SetStage, open_page: Open, chromium: Any) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "one ")
    page.wait_for_answer("one")
    chromium.get("about:blank")
    scene.say(sequence, "two")
    scene.finish(sequence)
    page = open_page(scene.url)
    page.wait_for_answer("one two")
    page.until(lambda: not page.is_streaming)
    assert not page.all(".failed")


def test_a_tab_that_crashes_takes_nothing_along(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url, prelude=SILENCE)
    page.ask("hello")
    [sequence] = scene.sequences()
    for said, piece in (("one", "one "), ("one two", "two ")):
        scene.say(sequence, piece)
        page.wait_for_answer(said)
    page.type("and next I want")
    page.until(lambda: "one two" in page.script("return JSON.stringify(localStorage)"))
    page = open_page(scene.url)
    page.wait_for_answer("one two")
    assert page.draft == "and next I want"
    scene.say(sequence, "three")
    page.wait_for_answer("one two three")


def test_a_server_that_was_restarted_leaves_the_partial_text_and_is_told_of_it(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "half an ans")
    page.wait_for_answer("half an ans")
    scene.stop()
    page.until(lambda: page.connection == "away")
    scene.start()
    page.until(lambda: not page.is_streaming)
    assert page.answers == ["half an ans"]
    assert "no longer has the rest" in page.endings[0]
    assert open_page(scene.url).answers == ["half an ans"]
    page.ask("go on")
    [sequence] = scene.sequences()
    prompt = bytes(scene.engine.specs[sequence].prompt_token_ids)
    assert prompt == b"<user>hello\n<assistant>half an ans\n<user>go on\n<assistant>"


def test_an_answer_lost_while_no_tab_was_there_is_said_to_be_lost(stage: SetStage, open_page: Open, chromium: Any) -> None:
    scene = stage(resume_s=0.01)
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    for said, piece in (("ha", "ha"), ("half", "lf")):
        scene.say(sequence, piece)
        page.wait_for_answer(said)
    chromium.get("about:blank")
    assert scene.aborts() == [sequence]
    scene.stop()
    scene.start()
    page = open_page(scene.url)
    page.until(lambda: "no longer has the rest" in page.endings[0])
    assert page.answers == ["half"]
    page.find(".regenerate").click()
    [sequence] = scene.sequences()
    scene.say(sequence, "whole")
    page.wait_for_answer("whole")


def test_a_page_that_was_left_holds_no_socket_and_goes_on_when_it_is_shown_again(
    stage: SetStage, open_page: Open, chromium: Any
) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "one ")
    page.wait_for_answer("one")
    chromium.get("about:blank")
    page.until(lambda: scene.metric("streamserve:ws_connections") == 0)
    scene.say(sequence, "two")
    chromium.back()
    page.wait_for_answer("one two")
    assert page.is_streaming


def test_drafts_belong_to_their_chats_and_outlive_a_reload(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    page.ask("apples")
    page.wait_for_answer("fine")
    page.type("half a thought")
    page.type(CONTROL + "k")
    assert page.draft == ""
    page.type("another one")
    page = open_page(scene.url)
    assert page.draft == "another one"
    page.all(".chat button:first-child")[1].click()
    assert page.draft == "half a thought"
    page = open_page(scene.url)
    assert page.questions == ["apples"], "the chat that was looked at is looked at again"
    assert page.draft == "half a thought"


def test_a_setting_is_kept_while_it_is_being_typed(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.find("#toggle-settings").click()
    page.find("#settings [name=system]").send_keys("Be brief.")
    page = open_page(scene.url)
    assert page.find("#settings [name=system]").get_attribute("value") == "Be brief."


def test_a_full_storage_is_told_and_takes_nothing_from_earlier_chats(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    for question in ("apples", "pears"):
        page.type(CONTROL + "k")
        page.ask(question)
        page.wait_for_answer("fine")
        page.until(lambda: not page.is_streaming)
    assert page.texts("#notice") == [""]
    page.script(FILL)
    page.type(CONTROL + "k")
    page.ask("plums " * 100)
    page.wait_for_answer("fine")
    assert "keeps no more" in page.texts("#notice")[0]
    page = open_page(scene.url)
    assert page.answers == ["fine"]
    assert [title.split()[0] for title in page.chats] == ["plums", "pears", "apples"]
    page.script(EMPTY)
    page.ask("and plums again")
    page.until(lambda: page.answers == ["fine", "fine"])
    assert page.texts("#notice") == [""]
    assert "plums again" in page.script("return JSON.stringify(localStorage)")


def test_where_nothing_may_be_stored_chats_go_on_and_the_page_says_so(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url, prelude=FORBID)
    page.ask("hello")
    page.wait_for_answer("fine")
    page.ask("hello again")
    page.until(lambda: page.answers == ["fine", "fine"])
    assert "keeps no more" in page.texts("#notice")[0]


def test_chats_of_an_earlier_page_are_taken_over_all_of_them(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    chats = [{"id": f"c{number}", "messages": _messages(number), "streamId": None} for number in range(60)]
    _put(page, "chats", json.dumps(chats))
    for _ in range(2):
        page = open_page(scene.url)
        assert page.chats == [f"question {number}" for number in range(60)]
    page.find(".chat button:first-child").click()
    assert page.answers == ["answer 0"]
    assert page.endings == ["stopped · 3 tokens"]
    page.ask("more")
    page.wait_for_answer("fine")
    assert len(open_page(scene.url).chats) == 60


def _messages(number: int) -> list[dict[str, str]]:
    answer = {"role": "assistant", "content": f"answer {number}", "ending": "stopped", "figures": "3 tokens"}
    return [{"role": "user", "content": f"question {number}"}, answer]


@pytest.mark.parametrize("text", ["{", "null", "7", '{"turns": 3}', '[{"id": 1}]'])
def test_what_someone_else_has_stored_does_no_harm(text: str, stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    page = open_page(scene.url)
    for key in ("chats", "chat / 1", "draft / 1"):
        _put(page, key, text)
    page = open_page(scene.url)
    page.ask("hello")
    page.wait_for_answer("fine")


def _put(page: ChatPage, key: str, text: str) -> None:
    page.script("localStorage.setItem(arguments[0], arguments[1])", key, text)
