"""Chat templates of requests, where the operator trusts them: each is rendered in a process of its own.

Lives on the API worker's event loop. `text.template_process` bounds the process; this bounds how long a request waits and
how many processes run.
"""

from __future__ import annotations

import signal
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import anyio
import msgspec

from streamserve.engine.error_info import restore
from streamserve.errors import InvalidParameter, QueueFull
from streamserve.process.child import environment, module_command
from streamserve.text.chat_template import ChatMessage
from streamserve.text.rendered_text import RenderedText
from streamserve.text.template_process import CPU_S, MEMORY_BYTES, TemplateCall, TemplateOutcome

TIMEOUT_S = 20.0
"""Seconds by the clock, for a box with more to do than processors: CPU_S is what ends a template that doesn't end."""

MAX_PROCESSES = 2


class RequestTemplates:
    """Renders the templates of one API worker's requests."""

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._places = anyio.Semaphore(MAX_PROCESSES)
        self._timeout_s = timeout_s

    async def render(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        messages: Sequence[ChatMessage],
        options: Mapping[str, Any],
        kept_out: Collection[str] = frozenset(),
    ) -> str:
        """The prompt; arguments and errors as of `ChatTemplate`, whose faults are the request's.

        Raises `InvalidParameter` for one that takes too long or too much, `QueueFull` when others did not let it have a turn.
        """
        call = TemplateCall(
            source=source,
            special_tokens=dict(special_tokens),
            kept_out=list(kept_out),
            messages=list(map(dict, messages)),
            options=dict(options),
        )
        await self._take_place()
        try:
            with anyio.fail_after(self._timeout_s):
                return await _in_process(msgspec.json.encode(call))
        except TimeoutError:
            raise InvalidParameter("chat_template", f"took longer than {self._timeout_s:g} s to write out") from None
        finally:
            self._places.release()

    async def _take_place(self) -> None:
        try:
            with anyio.fail_after(self._timeout_s):
                await self._places.acquire()
        except TimeoutError:
            raise QueueFull("others' chat templates take long: try again in some seconds", retry_after_s=5.0) from None


async def _in_process(call: bytes) -> str:
    # Leaving the block that this is awaited in, by whatever way, ends the process.
    process = await anyio.run_process(
        module_command("streamserve.text.template_process"), input=call, stderr=None, check=False, env=environment()
    )
    if process.returncode == -signal.SIGXCPU:
        raise InvalidParameter("chat_template", f"takes more than {CPU_S} s of processor time")
    if process.returncode:
        raise InvalidParameter("chat_template", f"can't be written out within {CPU_S} s and {MEMORY_BYTES >> 20} MiB")
    outcome = msgspec.json.decode(process.stdout, type=TemplateOutcome)
    if outcome.error is not None:
        raise restore(outcome.error, param=outcome.param)
    return RenderedText(outcome.text, outcome.literals) if outcome.literals else outcome.text
