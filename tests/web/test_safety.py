"""What a model writes is drawn and never run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.scripted_engine import text_reply
from tests.web.conftest import Open, Stage

pytestmark = pytest.mark.slow

SetStage = Callable[..., Stage]

ATTACKS = [
    "<script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "![x](x' onerror='window.ran=1)",
    "<svg onload='window.ran = 1'></svg>",
    "<iframe srcdoc='<script>parent.ran = 1</script>'></iframe>",
    "[click](javascript:window.ran=1)",
    "[click](JaVaScRiPt&colon;window.ran=1)",
    "[click](data:text/html,<script>opener.ran=1</script>)",
    "<a href='javascript:window.ran=1'>click</a>",
    "<style>body { display: none }</style>",
    "```html\n<script>window.ran = 1</script>\n```",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_an_answer_runs(attack: str, stage: SetStage, open_page: Open) -> None:
    scene = stage(text_reply(attack + "\n\nover"))
    page = open_page(scene.url)
    page.ask("hello")
    page.until(lambda: page.answers and page.answers[-1].endswith("over"))
    page.until(lambda: not page.is_streaming)
    for link in page.all("article.assistant a"):
        page.script("arguments[0].click()", link)
    assert page.script("return window.ran === undefined")
    assert page.all(".content script, .content img, .content iframe, .content svg, .content style") == []
    assert page.find("#prompt").is_displayed()
    hrefs = page.script("return [...document.querySelectorAll('.content a')].map((a) => a.protocol)")
    assert set(hrefs) <= {"http:", "https:", "mailto:"}


def test_the_policy_stops_a_script_that_got_past_the_rendering(stage: SetStage, open_page: Open) -> None:
    page = open_page(stage().url)
    page.script("document.querySelector('#messages').innerHTML = `<img src='chat/absent.png' onerror='window.ran = 1'>`")
    page.until(lambda: any("Content Security Policy" in line for line in page.console))
    assert page.script("return window.ran === undefined")


def test_markdown_is_drawn(stage: SetStage, open_page: Open) -> None:
    text = "# Head\n\n- **bold**\n- `code`\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n```python\nprint(1 < 2)\n```\n\nhttps://example.com"
    scene = stage(text_reply(text))
    page = open_page(scene.url)
    page.ask("hello")
    page.until(lambda: page.all(".content a"))
    assert [len(page.all(f".content {tag}")) for tag in ("h1", "li", "strong", "table", "pre")] == [1, 2, 1, 1, 1]
    assert page.texts(".content pre code") == ["print(1 < 2)"]
    assert page.find(".content a").get_attribute("rel") == "noopener noreferrer"
    assert page.find(".content a").get_attribute("target") == "_blank"
