"""The unmodified OpenAI client, strict about the shape of everything it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from openai import AsyncOpenAI


@asynccontextmanager
async def openai_client(base_url: str, *, api_key: str = "any", is_strict: bool = True) -> AsyncIterator[AsyncOpenAI]:
    """A client of the server at `base_url` that does not retry."""
    async with AsyncOpenAI(
        base_url=f"{base_url}/v1", api_key=api_key, max_retries=0, _strict_response_validation=is_strict
    ) as client:
        yield client
