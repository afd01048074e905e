"""openai-agents over the chat API, the Responses API and its WebSocket."""

from __future__ import annotations

import asyncio
import sys

from agents import Agent, ModelSettings, OpenAIProvider, RunConfig, Runner, set_tracing_disabled

BASE_URL = f"{sys.argv[1]}/v1"
QUESTION = "What is the capital of France? Answer with one word."  # the demo model ends its answer by itself
AGENT = Agent(
    name="helper", instructions="Answer briefly.", model="demo", model_settings=ModelSettings(temperature=0, max_tokens=64)
)


async def ask(provider: OpenAIProvider) -> str:
    config = RunConfig(model_provider=provider)
    whole = await Runner.run(AGENT, QUESTION, run_config=config)
    streamed = Runner.run_streamed(AGENT, QUESTION, run_config=config)
    deltas = [
        event.data.delta
        async for event in streamed.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == streamed.final_output == whole.final_output
    return whole.final_output


async def main() -> None:
    set_tracing_disabled(True)
    transports = ({"use_responses": False}, {"use_responses": True}, {"use_responses": True, "use_responses_websocket": True})
    answers = [await ask(OpenAIProvider(base_url=BASE_URL, api_key="EMPTY", **transport)) for transport in transports]
    assert all(answers)
    assert answers[1] == answers[2]


asyncio.run(main())
