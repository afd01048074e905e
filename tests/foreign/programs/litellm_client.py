"""litellm, as an OpenAI-compatible and as a hosted vLLM provider: chat, streams, text completion, errors."""

from __future__ import annotations

import sys

import litellm

litellm.suppress_debug_info = True
common = {"api_base": f"{sys.argv[1]}/v1", "api_key": "EMPTY", "temperature": 0, "max_tokens": 8}
messages = [{"role": "user", "content": "Name a colour."}]

for provider in ("openai", "hosted_vllm"):
    whole = litellm.completion(model=f"{provider}/demo", messages=messages, **common)
    stream = litellm.completion(model=f"{provider}/demo", messages=messages, stream=True, **common)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 8

completion = litellm.text_completion(model="text-completion-openai/demo", prompt="The capital of France is", **common)
assert completion.choices[0].text
try:
    litellm.completion(model="openai/absent", messages=messages, num_retries=0, **common)
except litellm.NotFoundError:
    print("done")
else:
    raise AssertionError("a model that is not there was served")
