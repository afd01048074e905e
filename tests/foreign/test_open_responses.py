"""Open Responses: the cases of its compliance suite, checked with its published types."""

from __future__ import annotations

from functools import partial

import anyio.to_thread
import pytest

from streamserve.types import SequenceSpec, TokenDelta
from tests.foreign.environments import PROGRAMS, python_with, run_program
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% for tool in tools or [] %}<tool_call>{{ tool.function.name }}\n{% endfor %}<assistant>"
)
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'


def reply(spec: SequenceSpec) -> list[TokenDelta]:
    """A model that calls a tool where it is told of one; small models do not."""
    return text_reply(CALL if b"<tool_call>" in bytes(spec.prompt_token_ids) else "As you wish.")(spec)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.anyio
async def test_the_compliance_suites_cases() -> None:
    python = await anyio.to_thread.run_sync(partial(python_with, "openresponses-types>=2.4", "httpx", "websockets"))
    async with live_server(ScriptedEngine(reply=reply), chat_template=TEMPLATE) as server:
        command = [python, PROGRAMS / "open_responses.py"]
        printed = await anyio.to_thread.run_sync(partial(run_program, command, server.base_url, "scripted"))
    assert len(printed.split()) == 17
