"""A browser and a server for it, both driven from the test's own thread.

Selenium blocks; the server needs its event loop: it runs on a thread of its own, behind a portal. Everything here is skipped,
with the reason, without Chromium, ChromeDriver or Selenium (`pip install -e '.[browser]'`).
"""

from __future__ import annotations

import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from streamserve.errors import StreamserveError
from streamserve.types import TokenDelta
from tests.client.dropping_proxy import DroppingProxy, dropping_proxy
from tests.support.live_server import LiveServer, live_server
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

EMPTY_STORAGE = "try { localStorage.clear(); sessionStorage.clear() } catch { /* closed to this page */ }"


async def _event() -> anyio.Event:
    return anyio.Event()


class Open(Protocol):
    """Opens the page; waits for a state of the line. `prelude` is a script that runs before the page's own."""

    def __call__(self, url: str, *, connection: str = "connected", in_new_tab: bool = False, prelude: str = "") -> ChatPage: ...


class Stage:
    """A scripted engine behind a real server, and a proxy before it that can cut the line.

    serve   a server with an engine of its own, each time it is called
    config  of the server that is started next
    """

    def __init__(
        self,
        portal: BlockingPortal,
        serve: Callable[[dict[str, Any]], AbstractContextManager[LiveServer]],
        config: dict[str, Any],
        proxy: DroppingProxy,
        url: str,
    ) -> None:
        self.url = url
        self.config = config
        self._portal = portal
        self._serve = serve
        self._proxy = proxy
        self._server = ExitStack()
        self.start()

    def start(self) -> None:
        """Start a server, and an engine that knows of nothing."""
        server = self._server.enter_context(self._serve(self.config))
        self.engine = server.engine
        self._proxy.port = server.port

    def stop(self) -> None:
        """End the server as a machine does that loses its power: no stream gets an ending."""
        self._proxy.port = None
        self.drop()
        self._server.close()

    def refuse(self, error: StreamserveError | None) -> None:
        """Have the engine refuse what it is asked from now on; None for no longer."""
        self.engine.refuse = error

    def hold_admissions(self) -> None:
        """Have requests wait at the engine's door until `let_in`."""
        self.engine.admit = self._portal.call(_event)

    def let_in(self) -> None:
        self._portal.call(self.engine.admit.set)

    def sequences(self, count: int = 1) -> list[str]:
        """Wait for `count` admissions in all; their ids."""
        return list(self._portal.call(self.engine.sequences, count))

    def say(self, sequence_id: str, text: str) -> None:
        self._portal.call(self.engine.say, sequence_id, text)

    def generate(self, sequence_id: str, delta: TokenDelta) -> None:
        self._portal.call(self.engine.generate, sequence_id, delta)

    def finish(self, sequence_id: str) -> None:
        self._portal.call(self.engine.finish, sequence_id)

    def aborts(self, count: int = 1) -> list[str]:
        return list(self._portal.call(self.engine.aborts, count))

    def told_to_answer(self, count: int = 1) -> list[str]:
        """Wait until the reasoning of `count` sequences has been ended."""
        return list(self._portal.call(self.engine.answers, count))

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

            @contextmanager
            def serve(config: dict[str, Any]) -> Iterator[LiveServer]:
                with portal.wrap_async_context_manager(live_server(portal.call(make), **config)) as server:
                    yield server

            proxy, url = stack.enter_context(portal.wrap_async_context_manager(dropping_proxy()))
            scene = Stage(portal, serve, config, proxy, url)
            stack.callback(scene.stop)
            return scene

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
def open_page(chromium: Any) -> Iterator[Open]:
    """Opens the page at a URL, as someone who has never been there.

    Every test has a port, so a storage, of its own; it is emptied in the end, since ports come again.
    """
    chromium.get_log("browser")
    [first] = chromium.window_handles

    def open_(url: str, *, connection: str = "connected", in_new_tab: bool = False, prelude: str = "") -> ChatPage:
        if in_new_tab:
            chromium.switch_to.new_window("tab")
        added = chromium.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": prelude})
        chromium.get(f"{url}/")
        chromium.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", added)
        return ChatPage(chromium, connection)

    yield open_
    for window in chromium.window_handles:
        if window != first:
            chromium.switch_to.window(window)
            chromium.close()
    chromium.switch_to.window(first)
    chromium.execute_script(EMPTY_STORAGE)
    chromium.get("about:blank")
