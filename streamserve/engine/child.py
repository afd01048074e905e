"""How further processes of this program are started: with this one's interpreter, finding the modules that this one finds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def start_module(module: str, *, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
    """Start `python -m module` with a pipe to its standard input."""
    return subprocess.Popen(module_command(module), stdin=subprocess.PIPE, pass_fds=pass_fds, env=environment())


def module_command(module: str) -> list[str]:
    """The command that runs `module`, in an `environment`."""
    # -P and a path of our own: else Python would look into the working folder first, and a queue.py that a user keeps there
    # would take the place of the standard library's.
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process's, in which modules are found as they are found here."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path)}
