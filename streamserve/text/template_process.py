"""A process that writes out one chat template of a stranger's: `python -m streamserve.text.template_process`.

A template is a program. The sandbox keeps it from reaching anything; how long it runs and how much it takes only the kernel
can limit, for one multiplication of a text or power of a number runs in C, where no thread can be interrupted. So it gets a
process: one call as JSON on stdin, one outcome as JSON on stdout, and limits that end it.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, StreamserveError
from streamserve.text.chat_template import compile_override
from streamserve.types import ErrorInfo

CPU_S = 1
"""Seconds of processor time, start included."""

MEMORY_BYTES = 512 << 20
"""Of address space, the interpreter's included."""


class TemplateCall(msgspec.Struct, frozen=True, kw_only=True):
    """What to write out.

    options  as `ChatTemplate.render` takes them
    """

    source: str
    special_tokens: dict[str, str]
    messages: list[dict[str, Any]]
    options: dict[str, Any]


class TemplateOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The prompt, or why there is none."""

    text: str = ""
    error: ErrorInfo | None = None
    param: str | None = None


def main() -> None:
    """Read a call, write its outcome."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        call = msgspec.json.decode(sys.stdin.buffer.read(), type=TemplateCall)
        said = msgspec.json.encode(write_out(call))
    except MemoryError:
        said = msgspec.json.encode(_outcome(InvalidParameter("chat_template", f"takes more than {MEMORY_BYTES >> 20} MiB")))
    sys.stdout.buffer.write(said)


def write_out(call: TemplateCall) -> TemplateOutcome:
    """Compile and render; what is wrong with the template or the messages is part of the outcome."""
    try:
        template = compile_override(call.source, call.special_tokens)
        return TemplateOutcome(text=template.render(call.messages, **call.options))
    except StreamserveError as error:
        return _outcome(error)


def _outcome(error: StreamserveError) -> TemplateOutcome:
    return TemplateOutcome(error=ErrorInfo(error.code, error.message), param=error.param)


if __name__ == "__main__":
    main()
