"""Themes, languages, narrow screens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from streamserve.errors import QueueFull
from tests.support.scripted_engine import text_reply
from tests.web.conftest import Open, Stage

pytestmark = pytest.mark.slow

SetStage = Callable[..., Stage]


def test_light_and_dark_are_told_apart_and_kept(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    background = "return getComputedStyle(document.body).backgroundColor"
    before = page.script(background)
    page.find("#theme").click()
    after = page.script(background)
    assert after != before
    assert open_page(scene.url).script(background) == after


def test_chinese_and_english(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("秋高气爽"))
    page = open_page(scene.url)
    page.ask("描述一下北京的秋天")
    page.wait_for_answer("秋高气爽")
    assert page.texts("#new-chat span") == ["New chat"]
    page.find("#language").click()
    assert page.texts("#new-chat span") == ["新对话"]
    assert page.script("return document.documentElement.lang") == "zh-CN"
    assert page.answers == ["秋高气爽"]
    assert open_page(scene.url).texts("#new-chat span") == ["新对话"]


NARROW = {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": False}


@pytest.fixture
def narrow(chromium: Any) -> Iterator[None]:
    """A screen as narrow as they come."""
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", NARROW)
    yield
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.usefixtures("narrow")
def test_no_button_breaks_its_words_beside_a_long_text(stage: SetStage, open_page: Open) -> None:
    scene = stage(model_names=["an-organisation/" + "m" * 80])
    scene.refuse(QueueFull("W" * 70 + " and many words more " * 10))
    page = open_page(scene.url)
    page.ask("北京" * 200)
    page.until(lambda: "many words more" in "".join(page.endings))
    lines = "return [...document.querySelectorAll('button')].filter((b) => b.checkVisibility()).map(countLines)"
    count = "const countLines = (b) => { const r = document.createRange(); r.selectNodeContents(b); const tops = new Set();"
    count += "for (const rect of r.getClientRects()) tops.add(Math.round(rect.bottom / 8)); return tops.size }; "
    for _ in range(2):
        assert set(page.script(count + lines)) == {1}
        assert page.script("return document.documentElement.scrollWidth <= innerWidth")
        assert page.find("#send").is_displayed()
        page.find("#language").click()


def test_every_block_is_written_in_its_own_direction(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("# مرحبا\n\n- واحد\n\n- اثنان\n\n> اقتباس\n\nEnglish\n\n```\nprint('مرحبا')\n```"))
    page = open_page(scene.url)
    page.ask("كيف حالك؟")
    page.until(lambda: page.all(".content pre") and not page.is_streaming)
    directions = "return arguments[0].map((css) => getComputedStyle(document.querySelector(css)).direction)"
    blocks = [f"article.assistant .content {tag}" for tag in ("h1", "ul", "blockquote", "> p", "pre")]
    assert page.script(directions, blocks) == ["rtl", "rtl", "rtl", "ltr", "ltr"]
    assert page.script(directions, ["article.user .content", ".chat button", "#send"]) == ["rtl", "rtl", "ltr"]


def test_an_answer_that_is_there_is_not_drawn_again_under_its_reader(stage: SetStage, open_page: Open) -> None:
    scene = stage()
    page = open_page(scene.url)
    page.ask("one")
    [sequence] = scene.sequences()
    scene.say(sequence, "first answer")
    scene.finish(sequence)
    page.until(lambda: not page.is_streaming)
    page.script("window.paragraph = document.querySelector('article.assistant .content p')")
    page.ask("two")
    sequence = scene.sequences(2)[1]
    scene.say(sequence, "second answer")
    scene.finish(sequence)
    page.until(lambda: not page.is_streaming and page.answers[-1] == "second answer")
    assert page.script("return paragraph.isConnected && paragraph.textContent") == "first answer"


def test_nothing_is_wider_than_a_phone(stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply("```\n" + "wide " * 60 + "\n```\n" + "x" * 300))
    page = open_page(scene.url)
    try:
        page.browser.set_window_size(500, 800)
        page.ask("hello")
        page.until(lambda: page.answers)
        assert page.script("return document.documentElement.scrollWidth <= innerWidth")
        assert page.find("#send").is_displayed()
    finally:
        page.browser.set_window_size(1200, 860)
