"""Calls that need of the system what it may lack for a while: descriptors, memory for a process, room on the disk.

Lives on any event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

RETRY_S = 1.0
"""Seconds between two attempts."""

logger = logging.getLogger(__name__)


async def until_possible(call: Callable[[], Awaitable[T]], action: str) -> T:
    """Call until it raises no `OSError`; logs each that it does.

    action  what the call does, for the log
    """
    while True:
        try:
            return await call()
        except OSError as error:
            logger.error("can't %s: %s; trying again", action, error.strerror or error)
        await anyio.sleep(RETRY_S)
