"""What the system lacks for a while is asked for again, and said in the log."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from streamserve.aio import until_possible as module
from streamserve.aio.until_possible import until_possible

pytestmark = pytest.mark.anyio


async def test_a_call_is_repeated_until_the_system_has_what_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    failures = [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    async def call() -> str:
        if failures:
            raise failures.pop(0)
        return "done"

    with caplog.at_level(logging.ERROR):
        assert await until_possible(call, "start it") == "done"
    assert [record.getMessage() for record in caplog.records] == [
        "can't start it: Too many open files; trying again",
        "can't start it: No space left on device; trying again",
    ]


async def test_any_other_error_is_the_callers() -> None:
    async def call() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await until_possible(call, "start it")
