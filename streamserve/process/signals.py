"""Signals that unwind a program as Ctrl-C does, so that it ends what it has started."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def exiting_on(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block these signals raise `SystemExit` on the main thread, with a shell's exit code. Main thread only."""
    before = {number: signal.signal(number, _exit) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
