"""Instructor: objects by a tool of OpenAI's and of Anthropic's API, whole and while they are made."""

from __future__ import annotations

import sys

import instructor
from anthropic import Anthropic
from openai import OpenAI
from pydantic import BaseModel


class Weather(BaseModel):
    """How it is outside."""

    city: str
    degrees: int


url = sys.argv[1]
asked = {"model": "agent", "messages": [{"role": "user", "content": "The weather in Paris."}], "max_retries": 0}
openai = instructor.from_openai(OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0))
anthropic = instructor.from_anthropic(Anthropic(base_url=url, api_key="EMPTY", max_retries=0))
expected = {"city": "Paris", "degrees": 21}
assert openai.chat.completions.create(response_model=Weather, **asked).model_dump() == expected
assert anthropic.messages.create(response_model=Weather, max_tokens=256, **asked).model_dump() == expected
partial = list(openai.chat.completions.create_partial(response_model=Weather, **asked))
assert partial[-1].model_dump() == expected
