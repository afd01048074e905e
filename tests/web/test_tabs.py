"""Several tabs with the page: none erases what another has, all show the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.scripted_engine import text_reply
from tests.web.conftest import Open, Stage
from tests.web.page import CONTROL

pytestmark = pytest.mark.slow

SetStage = Callable[..., Stage]

DEAFEN = "addEventListener('storage', (event) => event.stopImmediatePropagation());"
BLINDFOLD = "addEventListener('visibilitychange', (event) => event.stopImmediatePropagation(), true);"
"""Have a tab miss what others store, as one that the browser has frozen does, and miss that it is looked at again."""


def test_two_tabs_keep_each_others_chats(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    first = open_page(scene.url)
    second = open_page(scene.url, in_new_tab=True)
    for page, question in ((first, "apples"), (second, "pears"), (first, "plums")):
        page.come_forward().type(CONTROL + "k")
        page.ask(question)
        page.wait_for_answer("fine")
        page.until(lambda page=page: not page.is_streaming)
    assert first.come_forward().chats == ["plums", "pears", "apples"]
    assert second.come_forward().chats == ["plums", "pears", "apples"]
    assert open_page(scene.url, in_new_tab=True).chats == ["plums", "pears", "apples"]


def test_a_tab_that_missed_what_others_stored_shows_it_once_it_is_looked_at(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    first = open_page(scene.url, prelude=DEAFEN)
    second = open_page(scene.url, in_new_tab=True)
    second.ask("apples")
    second.wait_for_answer("fine")
    first.come_forward()
    first.until(lambda: "apples" in first.chats)


def test_an_answer_is_shown_in_every_tab_as_it_comes(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    first = open_page(scene.url)
    first.ask("hello")
    [sequence] = scene.sequences()
    second = open_page(scene.url, in_new_tab=True)
    assert second.questions == ["hello"]
    said = ""
    for page in (first, second, first, second):
        scene.say(sequence, "北-")
        said += "北-"
        page.come_forward().wait_for_answer(said)
    scene.finish(sequence)
    for page in (first, second):
        page.come_forward()
        page.until(lambda page=page: not page.is_streaming)
        assert page.answers == [said]
    assert scene.engine.num_asked == 1


def test_questions_of_two_tabs_in_one_chat_are_both_kept(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    first = open_page(scene.url)
    first.ask("one")
    first.wait_for_answer("fine")
    first.until(lambda: not first.is_streaming)
    second = open_page(scene.url, in_new_tab=True, prelude=DEAFEN + BLINDFOLD)
    first.come_forward().ask("two")
    first.until(lambda: first.answers == ["fine", "fine"])
    first.until(lambda: not first.is_streaming)
    second.come_forward().ask("three")
    second.until(lambda: not second.is_streaming and len(second.answers) == 3)
    assert open_page(scene.url, in_new_tab=True).questions == ["one", "two", "three"]


def test_a_chat_deleted_in_one_tab_goes_from_the_other_and_no_answer_brings_it_back(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    first = open_page(scene.url)
    first.ask("apples")
    [sequence] = scene.sequences()
    scene.say(sequence, "red")
    first.wait_for_answer("red")
    second = open_page(scene.url, in_new_tab=True)
    second.wait_for_answer("red")
    second.script("document.querySelector('.chat .remove').click()")
    assert scene.aborts() == [sequence]
    first.come_forward()
    first.until(lambda: first.chats == ["New chat"])
    assert first.answers == []
    assert open_page(scene.url, in_new_tab=True).chats == ["New chat"]


def test_what_a_tab_wrote_over_because_it_saw_it_late_is_written_again(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    first = open_page(scene.url)
    first.ask("one")
    first.wait_for_answer("fine")
    first.until(lambda: not first.is_streaming)
    second = open_page(scene.url, in_new_tab=True, prelude=DEAFEN + BLINDFOLD)
    second.script("window.early = Object.entries(localStorage).find(([key]) => key.startsWith('chat '))")
    first.come_forward().ask("two")
    first.until(lambda: first.answers == ["fine", "fine"] and not first.is_streaming)
    second.come_forward().script("localStorage.setItem(...early)")
    second.until(lambda: "two" in second.script("return localStorage.getItem(early[0])"))


def test_a_deleted_chat_that_another_tab_writes_late_is_deleted_again(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    first = open_page(scene.url)
    first.ask("one")
    first.wait_for_answer("fine")
    first.until(lambda: not first.is_streaming)
    second = open_page(scene.url, in_new_tab=True)
    second.script("window.early = Object.entries(localStorage).find(([key]) => key.startsWith('chat '))")
    first.come_forward().script("document.querySelector('.chat .remove').click()")
    second.come_forward().until(lambda: second.chats == ["New chat"])
    second.script("localStorage.setItem(...early)")
    second.until(lambda: second.script("return localStorage.getItem(early[0])") is None)


def test_stop_in_one_tab_stops_in_all(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    first = open_page(scene.url)
    first.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "half")
    first.wait_for_answer("half")
    second = open_page(scene.url, in_new_tab=True)
    second.wait_for_answer("half")
    second.find("#stop").click()
    assert scene.aborts() == [sequence]
    first.come_forward()
    first.until(lambda: not first.is_streaming)
    assert first.endings[0].startswith("stopped")


def test_an_answer_that_one_tab_has_lost_goes_on_in_another(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    first = open_page(scene.url)
    first.ask("hello")
    [sequence] = scene.sequences()
    scene.say(sequence, "half")
    first.wait_for_answer("half")
    second = open_page(scene.url, in_new_tab=True, prelude=DEAFEN + BLINDFOLD)
    second.wait_for_answer("half")
    second.script("""
        const [key, text] = Object.entries(localStorage).find(([key]) => key.startsWith("chat "));
        localStorage.setItem(key, text.replace('"ending":null', '"ending":"lost"'));
    """)
    first.come_forward()
    scene.say(sequence, " and half")
    first.wait_for_answer("half and half")
    assert first.is_streaming
    assert scene.engine.aborted == []


def test_a_tab_takes_over_from_one_that_was_closed_before_its_answer_began(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    first = open_page(scene.url)
    second = open_page(scene.url, in_new_tab=True)
    scene.hold_admissions()
    second.ask("hello")
    first.come_forward()
    first.until(lambda: "hello" in first.chats)
    second.come_forward().browser.close()
    first.come_forward().find(".chat button").click()
    scene.let_in()
    sequence = scene.sequences()[-1]
    scene.say(sequence, "here")
    first.wait_for_answer("here")


def test_a_question_is_asked_once_however_many_tabs_know_it(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    first = open_page(scene.url)
    scene.hold_admissions()
    first.ask("hello")
    second = open_page(scene.url, in_new_tab=True)
    second.until(lambda: scene.metric("streamserve:rejected_total") > 0)
    scene.let_in()
    [sequence] = scene.sequences()
    scene.say(sequence, "here")
    second.wait_for_answer("here")
    first.come_forward().wait_for_answer("here")
    assert scene.engine.num_asked == 1
    assert not first.all(".failed")


def test_each_tab_keeps_its_own_draft_of_one_chat(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("fine"))
    first = open_page(scene.url)
    first.ask("hello")
    first.wait_for_answer("fine")
    second = open_page(scene.url, in_new_tab=True)
    first.come_forward().type("mine")
    second.come_forward().type("yours")
    assert open_page(scene.url).draft == "yours"
    first.come_forward()
    assert open_page(scene.url).draft == "mine"
