"""Signals that end a program: they should unwind it, as Ctrl-C does, and not leave behind what it has started."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def exiting_on(*numbers: signal.Signals) -> Iterator[None]:
    """Meanwhile these signals leave through every `with` and `finally`, with a shell's exit code. On the main thread only."""
    before = {number: signal.signal(number, _leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
