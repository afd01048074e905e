"""What signals do to processes: those that end a program unwind it as Ctrl-C does, so that it ends what it has started.

SIGHUP ends a program as SIGTERM does, unless it is ignored already, as `nohup` has it, or means something to a program whose
terminal is still there. SIGUSR1 and SIGUSR2 would kill, and mean
nothing here. Terminals and supervisors send signals to whole groups of processes; the first of a group handles them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MEANINGLESS = (signal.SIGUSR1, signal.SIGUSR2)


def ignore(*numbers: signal.Signals) -> None:
    """Have these signals do nothing. Main thread only."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)


def heeded(*numbers: signal.Signals) -> list[signal.Signals]:
    """Those signals that this process was not started to ignore."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def exiting_on(*numbers: signal.Signals) -> Iterator[None]:
    """Within the block these signals, but for ignored ones, raise `SystemExit` on the main thread, with a shell's exit code.

    Main thread only.
    """
    before = {number: signal.signal(number, _exit) for number in heeded(*numbers)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


class Terminal:
    """The terminal that this process was started from, if any: it sends SIGHUP when it closes."""

    def __init__(self) -> None:
        self._was_there = _has_terminal()

    def is_there(self) -> bool:
        """Whether it has not closed; true where there never was one."""
        return not self._was_there or _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
