"""Themes, languages, narrow screens."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.scripted_engine import text_reply
from tests.web.conftest import Stage
from tests.web.page import ChatPage

pytestmark = pytest.mark.slow

Open = Callable[[str], ChatPage]
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
