"""Fixtures that every room may use, and which tests a plain run leaves out."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Without a GPU the Triton kernels are tested in the interpreter, and triton must know before anything imports it.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A run in the background of a shell inherits an ignored Ctrl-C, and one under nohup an ignored hang-up; so would the programs
# that tests send them to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="session")
def offline_hub() -> Iterator[None]:
    """No test may reach a model hub; the hub tests start their own on loopback."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    yield
    if before is None:
        del os.environ["HF_HUB_OFFLINE"]
    else:
        os.environ["HF_HUB_OFFLINE"] = before


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What this user has compiled must not change what tests run; programs that tests install come from pip's cache as ever."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_CACHE_DIR", os.environ.get("PIP_CACHE_DIR", str(Path.home() / ".cache" / "pip")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


LEFT_OUT_BY_DEFAULT = ("gpu", "ray", "slow")
LEFT_OUT_SIDE_BY_SIDE = ("quiet",) if "PYTEST_XDIST_WORKER" in os.environ else ()
LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without -m of its own, a run takes no tests that are slow or need a GPU or Ray, nor, side by side with others, any that
    measure processor time; the summary counts those left out."""
    if config.option.markexpr:
        return
    left_out = [item for item in items if _reason_to_leave_out(item)]
    config.stash[LEFT_OUT] = Counter(_reason_to_leave_out(item) or "" for item in left_out)
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not _reason_to_leave_out(item)]


def _reason_to_leave_out(item: pytest.Item) -> str | None:
    return next((name for name in (*LEFT_OUT_BY_DEFAULT, *LEFT_OUT_SIDE_BY_SIDE) if item.get_closest_marker(name)), None)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Have a worker of pytest-xdist tell the process that writes the summary what it left out."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["left_out"] = dict(session.config.stash.get(LEFT_OUT, Counter()))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Every worker collects the same tests, so that the count of one is the count of all."""
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, count in sorted(config.stash.get(LEFT_OUT, Counter()).items()):
        terminalreporter.write_line(f"left out: {count} {name} tests (pytest -m {name} runs them)")
