"""A process that renders one chat template of a request: `python -m streamserve.text.template_process`.

A template is a program. The sandbox restricts what it can reach; only the kernel can limit its time and memory, since one
multiplication of a text runs in C, where no thread can be interrupted. So it gets a process: one call as JSON on standard
input, one outcome as JSON on standard output, and resource limits that end it.
"""

from __future__ import annotations

import resource
import sys
from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, StreamserveError
from streamserve.text.chat_template import compile_override
from streamserve.text.rendered_text import RenderedText, Span
from streamserve.types import ErrorInfo

CPU_S = 1
"""Seconds of processor time, start included."""

MEMORY_BYTES = 512 << 20
"""Of address space, the interpreter's included."""


class TemplateCall(msgspec.Struct, frozen=True, kw_only=True):
    """What to render.

    kept_out  as of `ChatTemplate`
    options   as `ChatTemplate.render` takes them
    """

    source: str
    special_tokens: dict[str, str]
    kept_out: list[str] = []
    messages: list[dict[str, Any]]
    options: dict[str, Any]


class TemplateOutcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The prompt, or why there is none.

    literals  of a `RenderedText`
    """

    text: str = ""
    literals: tuple[Span, ...] = ()
    error: ErrorInfo | None = None
    param: str | None = None


def main() -> None:
    """Read a call, write its outcome."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S + 1))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        call = msgspec.json.decode(sys.stdin.buffer.read(), type=TemplateCall)
        outcome = render(call)
    except MemoryError:
        outcome = _failed(InvalidParameter("chat_template", f"takes more than {MEMORY_BYTES >> 20} MiB"))
    sys.stdout.buffer.write(msgspec.json.encode(outcome))


def render(call: TemplateCall) -> TemplateOutcome:
    """Compile and render; an error of the template or the messages is part of the outcome."""
    try:
        template = compile_override(call.source, call.special_tokens, call.kept_out)
        text = template.render(call.messages, **call.options)
        return TemplateOutcome(text=str(text), literals=text.literals if isinstance(text, RenderedText) else ())
    except StreamserveError as error:
        return _failed(error)


def _failed(error: StreamserveError) -> TemplateOutcome:
    return TemplateOutcome(error=ErrorInfo(error.code, error.message), param=error.param)


if __name__ == "__main__":
    main()
