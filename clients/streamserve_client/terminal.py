"""Input and output of the command line: always UTF-8, whatever the locale, and no control characters from a model."""

from __future__ import annotations

import os
import sys
from typing import TextIO

_CONTROL_CHARACTERS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class OutputClosed(Exception):
    """The reader of standard output has closed it, as `head` does after ten lines."""


def use_utf8() -> None:
    """Write UTF-8 on a Latin-1 or GBK terminal too."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(encoding="utf-8", errors="replace")


def argument_text(value: str) -> str:
    """An argument's own bytes read as UTF-8: a Latin-1 locale makes Python decode them otherwise."""
    return os.fsencode(value).decode("utf-8", "replace")


def stdin_text() -> str:
    """All of standard input, less one newline at its end."""
    return sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n")


def write(text: str, to: TextIO | None = None) -> None:
    """Write a piece of a model's text at once; on a terminal without its control characters. Raises `OutputClosed`."""
    stream = to or sys.stdout
    try:
        stream.write(text.translate(_CONTROL_CHARACTERS) if stream.isatty() else text)
        stream.flush()
    except BrokenPipeError as error:
        raise OutputClosed from error


def write_line(text: str) -> None:
    write(text + "\n")


def note(text: str) -> None:
    """Write a line to standard error."""
    write(text + "\n", sys.stderr)


def status(text: str) -> None:
    """Show a state on standard error: on a terminal in place of the one before and of nothing when empty, else as a line."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
    elif text:
        note(text)


def silence_stdout() -> None:
    """Redirect standard output to /dev/null after a broken pipe, so that the interpreter's flush at exit does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
