"""LangChain's agents, streamed: over chats, responses and Anthropic's messages."""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.messages import AIMessageChunk
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

asked: list[str] = []


@tool
def weather(city: str) -> str:
    """How it is outside."""
    asked.append(city)
    return "sunny"


url = sys.argv[1]
openai = {"base_url": f"{url}/v1", "api_key": "EMPTY", "model": "agent", "max_retries": 0}
models = {
    "chat": ChatOpenAI(**openai),
    "responses": ChatOpenAI(**openai, use_responses_api=True),
    "messages": ChatAnthropic(base_url=url, api_key="EMPTY", model="agent", max_tokens=512, max_retries=0),
}
for name, model in models.items():
    agent = create_agent(model, [weather])
    question = {"messages": [("user", "What is the weather in Paris?")]}
    chunks = [chunk for chunk, _ in agent.stream(question, stream_mode="messages") if isinstance(chunk, AIMessageChunk)]
    text = "".join(chunk.text for chunk in chunks)
    assert text == "I will look it up.It is sunny.", (name, text)
    assert len(chunks) > 10, (name, len(chunks))
    whole = agent.invoke(question)["messages"]
    assert [message.type for message in whole] == ["human", "ai", "tool", "ai"], name
    assert whole[1].tool_calls[0]["args"] == {"city": "Paris"}, name
    assert whole[-1].text == "It is sunny.", name
assert asked == ["Paris"] * 6
