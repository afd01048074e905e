"""Pydantic AI's agents, streamed: over chats, responses and Anthropic's messages."""

from __future__ import annotations

import asyncio
import sys

from pydantic_ai import Agent, AgentRunResultEvent, PartDeltaEvent
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

asked: list[str] = []


def weather(city: str) -> str:
    """How it is outside."""
    asked.append(city)
    return "sunny"


async def main() -> None:
    openai = OpenAIProvider(base_url=f"{sys.argv[1]}/v1", api_key="EMPTY")
    for model in (
        OpenAIChatModel("agent", provider=openai),
        OpenAIResponsesModel("agent", provider=openai),
        AnthropicModel("agent", provider=AnthropicProvider(base_url=sys.argv[1], api_key="EMPTY")),
    ):
        agent = Agent(model, tools=[weather])
        whole = await agent.run("What is the weather in Paris?")
        assert whole.output == "It is sunny.", (model, whole.output)
        num_deltas, output = 0, None
        async with agent.run_stream_events("What is the weather in Paris?") as events:
            async for event in events:
                num_deltas += isinstance(event, PartDeltaEvent)
                if isinstance(event, AgentRunResultEvent):
                    output = event.result.output
        assert output == "It is sunny.", (model, output)
        assert num_deltas > 10, (model, num_deltas)
    assert asked == ["Paris"] * 6


asyncio.run(main())
