"""LangChain's ChatOpenAI: invoke, stream, astream, batch."""

from __future__ import annotations

import asyncio
import sys

from langchain_openai import ChatOpenAI

model = ChatOpenAI(base_url=f"{sys.argv[1]}/v1", api_key="EMPTY", model="demo", temperature=0, max_tokens=8, max_retries=0)


async def streamed() -> str:
    return "".join([chunk.content async for chunk in model.astream("Name a colour.")])


whole = model.invoke("Name a colour.")
assert whole.content
assert whole.usage_metadata["output_tokens"] == 8
assert "".join(chunk.content for chunk in model.stream("Name a colour.")) == whole.content
assert asyncio.run(streamed()) == whole.content
assert [answer.content for answer in model.batch(["Name a colour."] * 3)] == [whole.content] * 3
