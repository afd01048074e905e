"""Standard error as a place for logs, where a failure to write is nobody's failure.

A full disk, a pipe whose reader has left or a closed descriptor loses lines; it must not end a server, its streams or the
restart of its engine.
"""

from __future__ import annotations

import errno
import io
import os
from contextlib import suppress
from typing import Any, TextIO

from streamserve.fail_points import fail_point

_INPUT, _OUTPUT, _ERROR = 0, 1, 2

LOG_WRITE = "log_write"
"""The fail point of a line that can't be written."""


def error_stream() -> TextIO:
    """Text that is written to standard error at once, or dropped; writing never raises `OSError`."""
    # By number, not through sys.stderr: lines that it could not write stay in its buffer, and fail again at exit.
    return io.TextIOWrapper(_LossyDescriptor(_ERROR), encoding="utf-8", errors="backslashreplace", write_through=True)  # type: ignore[type-var]


class _LossyDescriptor(io.RawIOBase):
    """An open descriptor that takes everything, and keeps what there is room for."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def fileno(self) -> int:
        return self._descriptor

    def write(self, data: Any, /) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        with suppress(OSError):
            fail_point(LOG_WRITE, OSError, errno.ENOSPC, "no space left, as a test asked for")
            while left:
                left = left[os.write(self._descriptor, left) :]
        return size


def open_standard_descriptors() -> None:
    """Open /dev/null in the place of each standard stream that was closed when this process started.

    Else the next socket or file gets its number, and whatever is printed goes there. Call before anything is opened.
    """
    for descriptor in (_INPUT, _OUTPUT, _ERROR):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one.
            os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
