"""What SIGHUP says: that a terminal has closed, or that someone wants a reload."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import fcntl, signal, sys, termios
from streamserve.process.signals import Terminal
if sys.argv[1] == "own":
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
terminal = Terminal()
signal.signal(signal.SIGHUP, lambda *_: print(terminal.is_there(), file=sys.stderr, flush=True))
print("started", file=sys.stderr, flush=True)
signal.pause()
"""


@pytest.mark.parametrize(
    ("terminal", "closes", "means"), [("own", True, "False"), ("own", False, "True"), ("none", False, "True")]
)
def test_a_hangup_means_the_end_only_when_the_terminal_has_closed(terminal: str, closes: bool, means: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, terminal]
    with subprocess.Popen(command, stdin=theirs, stderr=subprocess.PIPE, start_new_session=True, text=True) as process:
        os.close(theirs)
        assert process.stderr is not None
        assert process.stderr.readline() == "started\n"
        if closes:
            os.close(ours)
        else:
            process.send_signal(signal.SIGHUP)
        assert process.stderr.readline().strip() == means
        process.kill()
    if not closes:
        os.close(ours)
