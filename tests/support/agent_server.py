"""A server in a thread of its own whose model calls a tool, reads the result and answers: what an agent's loop needs.

It writes Hermes' calls after some reasoning, as Qwen 3 does. Whatever the tool is, its arguments are made up from its schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from anyio.from_thread import start_blocking_portal

from streamserve.types import SequenceSpec, TokenDelta
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

MODEL = "agent"
TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
_MADE_UP: dict[str, Any] = {"string": "Paris", "integer": 21, "number": 21.5, "boolean": True, "array": [], "object": {}}


@contextmanager
def agent_server() -> Iterator[str]:
    """Serve as "agent"; yields the base URL."""
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(_serving()) as base_url:
        yield base_url


@asynccontextmanager
async def _serving() -> AsyncIterator[str]:
    async with live_server(ScriptedEngine(reply=_reply), chat_template=TEMPLATE, model_names=[MODEL]) as server:
        yield server.base_url


def _reply(spec: SequenceSpec) -> list[TokenDelta]:
    prompt = bytes(spec.prompt_token_ids).decode()
    thought = "" if prompt.endswith("</think>\n\n") else "<think>\nLet me think.\n</think>\n\n"
    if "<tools>" in prompt and "<tool>" not in prompt.rpartition("<user>")[2]:
        return list(text_reply(f"{thought}I will look it up.\n{_call(prompt)}")(spec))
    result = prompt.rpartition("<tool>")[2].partition("<")[0].strip().strip('"') or "unknown"
    return list(text_reply(f"{thought}It is {result}.")(spec))


def _call(prompt: str) -> str:
    tools = json.loads(re.findall(r"<tools>(.*?)</tools>", prompt, re.DOTALL)[0])
    function = tools[0]["function"]
    properties = function["parameters"].get("properties", {})
    arguments = {name: _MADE_UP[schema.get("type", "string")] for name, schema in properties.items()}
    return f"<tool_call>\n{json.dumps({'name': function['name'], 'arguments': arguments})}\n</tool_call>"
