"""The chat page as its reader sees it: what stands there, what can be pressed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

ENTER, SHIFT, CONTROL, ESCAPE = "\ue007", "\ue008", "\ue009", "\ue00c"
"""Keys as WebDriver names them."""

WAIT_S = 15


class ChatPage:
    """One tab with the page. Reads wait for nothing; `until` does.

    connection  the state of the line to wait for
    """

    def __init__(self, browser: Any, connection: str = "connected") -> None:
        self.browser = browser
        self.window = browser.current_window_handle
        self.until(lambda: self.connection == connection)

    def come_forward(self) -> ChatPage:
        """Make this the tab that is looked at."""
        self.browser.switch_to.window(self.window)
        return self

    def until(self, look: Callable[[], T | None]) -> T:
        """The first answer of `look` that is neither None, False nor empty."""
        from selenium.webdriver.support.wait import WebDriverWait

        return WebDriverWait(self.browser, WAIT_S, poll_frequency=0.03).until(lambda _: look())

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def all(self, css: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", css))

    def script(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)

    def texts(self, css: str) -> list[str]:
        """The texts of all such elements, in one look."""
        found = self.script("return [...document.querySelectorAll(arguments[0])].map((e) => e.innerText.trim())", css)
        return list(found)

    @property
    def connection(self) -> str:
        return str(self.script("return document.getElementById('connection').className"))

    @property
    def draft(self) -> str:
        return str(self.find("#prompt").get_attribute("value"))

    @property
    def questions(self) -> list[str]:
        return self.texts("article.user .content")

    @property
    def chats(self) -> list[str]:
        """The titles in the list."""
        return self.texts(".chat button:first-child")

    @property
    def answers(self) -> list[str]:
        return self.texts("article.assistant .content")

    @property
    def endings(self) -> list[str]:
        return self.texts("article.assistant .ending")

    @property
    def figures(self) -> str:
        return self.texts("#figures")[0]

    @property
    def is_streaming(self) -> bool:
        return bool(self.find("#stop").is_displayed())

    @property
    def console(self) -> list[str]:
        """What the browser complained of since it was last asked."""
        return [entry["message"] for entry in self.browser.get_log("browser")]

    def ask(self, text: str) -> None:
        self.type(text + ENTER)

    def type(self, keys: str) -> None:
        self.find("#prompt").send_keys(keys)

    def set(self, name: str, value: str) -> None:
        """Fill in a setting, as typing and leaving the field does."""
        if not self.find("#settings").is_displayed():
            self.find("#toggle-settings").click()
        field = self.find(f"#settings [name={name}]")
        field.clear()
        field.send_keys(value)
        self.script("arguments[0].blur()", field)

    def wait_for_answer(self, text: str) -> None:
        self.until(lambda: (self.answers or [""])[-1] == text or None)
