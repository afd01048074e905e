"""A browser and a server for it, both driven from the test's own thread.

Selenium blocks; the server needs its event loop: it runs on a thread of its own, behind a portal. Everything here is skipped,
with the reason, without Chromium, ChromeDriver or Selenium (`pip install -e '.[browser]'`).
"""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from tests.client.dropping_proxy import DroppingProxy, dropping_proxy
from tests.support.live_server import live_server
from tests.support.scripted_engine import Reply, ScriptedEngine
from tests.web.page import ChatPage

ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--lang=en-US",
    "--window-size=1200,860",
)


class Stage:
    """A scripted engine behind a real server, and a proxy before it that can cut the line."""

    def __init__(self, portal: BlockingPortal, engine: ScriptedEngine, proxy: DroppingProxy, url: str) -> None:
        self.engine = engine
        self.url = url
        self._portal = portal
        self._proxy = proxy

    def sequences(self, count: int = 1) -> list[str]:
        """Wait for `count` admissions in all; their ids."""
        return list(self._portal.call(self.engine.sequences, count))

    def say(self, sequence_id: str, text: str) -> None:
        self._portal.call(self.engine.say, sequence_id, text)

    def finish(self, sequence_id: str) -> None:
        self._portal.call(self.engine.finish, sequence_id)

    def aborts(self, count: int = 1) -> list[str]:
        return list(self._portal.call(self.engine.aborts, count))

    def metric(self, name: str) -> float:
        """What /metrics says now, all labels together."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))

    def drop(self) -> None:
        """Cut every connection without a goodbye."""
        self._portal.call(self._proxy.drop)


@pytest.fixture
def stage() -> Iterator[Callable[..., Stage]]:
    """Sets a stage: `stage(reply=..., **server_config)`."""
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())

        def build(reply: Reply | None = None, **config: Any) -> Stage:
            async def make() -> ScriptedEngine:
                return ScriptedEngine(reply=reply)

            engine = portal.call(make)
            server = stack.enter_context(portal.wrap_async_context_manager(live_server(engine, **config)))
            proxy, url = stack.enter_context(portal.wrap_async_context_manager(dropping_proxy(server.port)))
            return Stage(portal, engine, proxy, url)

        yield build


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed: pip install -e '.[browser]'")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("Chromium and ChromeDriver are not installed (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[[str], ChatPage]]:
    """Opens the page at a URL, as someone who has never been there; every test has a port, so a storage, of its own."""
    chromium.get_log("browser")

    def open_(url: str) -> ChatPage:
        chromium.get(f"{url}/")
        return ChatPage(chromium)

    yield open_
    chromium.get("about:blank")
