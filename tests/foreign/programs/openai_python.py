"""openai-python, any version from 1.x on: completions, chat, the stream helper, errors, responses where it has them."""

from __future__ import annotations

import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key="EMPTY", max_retries=0)
QUESTION = "What is the capital of France? Answer with one word."  # the demo model ends its answer by itself
MESSAGES = [{"role": "user", "content": QUESTION}]
COMMON = {"model": "demo", "temperature": 0}


def completions() -> None:
    whole = client.completions.create(prompt="The capital of France is", max_tokens=4, **COMMON)
    chunks = list(client.completions.create(prompt="The capital of France is", max_tokens=4, stream=True, **COMMON))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 4


def chat() -> None:
    whole = client.chat.completions.create(messages=MESSAGES, max_tokens=4, **COMMON)
    stream = client.chat.completions.create(
        messages=MESSAGES, max_tokens=4, stream=True, stream_options={"include_usage": True}, **COMMON
    )
    chunks = list(stream)
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    )
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


def stream_helper() -> None:
    api = client.chat.completions if hasattr(client.chat.completions, "stream") else client.beta.chat.completions
    choice = {"structured_outputs": {"choice": ["red", "blue"]}}  # the helper takes a cut-off answer for an error
    with api.stream(messages=MESSAGES, extra_body=choice, **COMMON) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta"} <= kinds
    assert final.choices[0].message.content in ("red", "blue")


def errors() -> None:
    try:
        client.chat.completions.create(messages=MESSAGES, model="absent")
    except openai.NotFoundError as error:
        code = error.code
    else:
        code = None
    assert code == "model_not_found"


def responses() -> None:
    whole = client.responses.create(input=QUESTION, max_output_tokens=64, **COMMON)
    assert whole.output_text
    with client.responses.stream(input=QUESTION, max_output_tokens=64, **COMMON) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text == whole.output_text
    assert client.responses.retrieve(whole.id).output_text == whole.output_text


def connect() -> None:
    with client.responses.connect() as connection:
        for _ in range(2):
            connection.response.create(input=QUESTION, max_output_tokens=64, **COMMON)
            text = ""
            for event in connection:
                text += event.delta if event.type == "response.output_text.delta" else ""
                if event.type in ("response.completed", "response.incomplete"):
                    break
            assert text == event.response.output_text


completions()
chat()
stream_helper()
errors()
if hasattr(client, "responses"):
    responses()
if hasattr(getattr(client, "responses", None), "connect"):
    connect()
print(openai.__version__, "connect" if hasattr(getattr(client, "responses", None), "connect") else "no connect")
