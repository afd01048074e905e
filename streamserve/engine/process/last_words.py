"""What an engine process that ends tells the one that follows it: how many tokens fit a step.

Crosses a pipe, since a disk may be full: the parent reads it once the process has ended. Never blocks.
"""

from __future__ import annotations

import os
from contextlib import suppress

MIN_STEP_TOKENS = 16
"""Steps are not made smaller than this: an engine that runs out of memory in one of twice as many ends like any other."""

_MAX_BYTES = 64


def leave(descriptor: int, num_tokens: int) -> None:
    """Say that a step of so many tokens ran out of memory, so that half as many have to do."""
    if num_tokens >= 2 * MIN_STEP_TOKENS:
        os.write(descriptor, b"%d" % (num_tokens // 2))


class LastWords:
    """The parent's side of the pipe. Close `theirs` once the process has it."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)

    def read(self) -> int | None:
        """The tokens that fit a step, if the process has left that. Call once, after its end; closes the pipe."""
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._ours, _MAX_BYTES)
        self.close()
        return int(data) if data.isdigit() else None

    def close(self) -> None:
        """Close this side. Idempotent."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1
