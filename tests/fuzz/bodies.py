"""Request bodies made by Hypothesis: every parameter there is, given as it should be, at its edges, or as anything JSON has."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from streamserve.server.apis.openai.requests.schemas import ChatRequest, CompletionRequest

Strategy = st.SearchStrategy[Any]

TEXTS = st.text(max_size=12) | st.sampled_from(["", "a", "北京🍂", "\x00", "\ud800", "</s>", "a" * 400])
NUMBERS = st.floats(-3, 3) | st.sampled_from([0, 1, -1, 1e-9, 1e308, float("inf"), float("nan"), 2**31, -(2**63), 2**64])
COUNTS = st.integers(-2, 6) | st.sampled_from([20, 21, 255, 256, 257, 10**6, 2**31, 2**63])
TOKENS = st.lists(st.integers(-1, 260), max_size=6)
LEAVES = st.none() | st.booleans() | COUNTS | NUMBERS | TEXTS
ANY_SCALAR = st.none() | st.booleans() | COUNTS | TEXTS
JUNK = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6)
SCHEMAS = JUNK | st.sampled_from(
    [{"type": "integer"}, {"enum": ["x", 1]}, {"$ref": "#/$defs/a"}, {"type": "object"}, {"minLength": -1}]
)
USER = st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant"]), "content": TEXTS})
ODD = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "", "nobody"]), "content": TEXTS | JUNK},
    optional={"tool_calls": JUNK, "name": JUNK},
)
MESSAGES = st.lists(ODD, max_size=3)
GOOD_MESSAGES = st.lists(USER, min_size=1, max_size=3)
GOOD_PROMPTS = st.text(min_size=1, max_size=12) | st.lists(st.integers(0, 255), min_size=1, max_size=6)
TOOLS = st.lists(
    st.fixed_dictionaries(
        {"type": st.just("function"), "function": st.fixed_dictionaries({"name": TEXTS, "parameters": SCHEMAS})}
    )
)

PLAUSIBLE: dict[str, Strategy] = {
    "prompt": TEXTS | TOKENS | st.lists(TEXTS, max_size=3) | st.lists(TOKENS, max_size=3),
    "messages": MESSAGES,
    "model": st.sampled_from(["tiny", "tiny", "tiny", "absent", ""]),
    "max_tokens": COUNTS,
    "max_completion_tokens": COUNTS,
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": JUNK, "continuous_usage_stats": st.booleans()}),
    "stop": TEXTS | st.lists(TEXTS, max_size=4),
    "logit_bias": st.dictionaries(st.integers(-1, 260).map(str), NUMBERS, max_size=4),
    "stop_token_ids": TOKENS,
    "allowed_token_ids": TOKENS,
    "bad_words": st.lists(TEXTS, max_size=3),
    "logprobs": COUNTS | st.booleans(),
    "response_format": st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "json_object", "json_schema", "x"])},
        optional={"json_schema": st.fixed_dictionaries({"schema": SCHEMAS})},
    ),
    "structured_outputs": st.fixed_dictionaries(
        {},
        optional={
            "regex": TEXTS | st.sampled_from(["[", "a+", "(a|b){3}"]),
            "choice": st.lists(TEXTS),
            "json": SCHEMAS,
            "grammar": TEXTS,
        },
    ),
    "tools": TOOLS,
    "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "f"}}]),
    "chat_template": TEXTS | st.sampled_from(["{{ messages }}", "{% for", "{{ 1/0 }}", "{{ ''.__class__ }}"]),
    "max_time": NUMBERS,
    "request_id": st.uuids().map(str) | TEXTS,
}
GOOD = {"prompt": GOOD_PROMPTS, "messages": GOOD_MESSAGES}
"""What the one required parameter mostly is, so that the others are looked at."""

FRACTIONS = {
    name: st.floats(low, high) | NUMBERS
    for name, low, high in [
        ("temperature", 0, 2),
        ("top_p", 0.1, 1),
        ("min_p", 0, 1),
        ("presence_penalty", -2, 2),
        ("frequency_penalty", -2, 2),
        ("repetition_penalty", 0.5, 2),
    ]
}
NAMES = {
    "/v1/completions": ("prompt", CompletionRequest.__struct_fields__),
    "/v1/chat/completions": ("messages", ChatRequest.__struct_fields__),
}


def _value(name: str) -> Strategy:
    plausible = (PLAUSIBLE | FRACTIONS).get(name, ANY_SCALAR)
    # Thrice as likely as junk: a body with one wrong value is refused for it, and the others are not looked at.
    return st.one_of(plausible, plausible, plausible, JUNK)


@st.composite
def _objects(draw: st.DrawFn, path: str) -> dict[str, Any]:
    required, names = NAMES[path]
    body: dict[str, Any] = {required: draw(GOOD[required]), "max_tokens": draw(st.integers(1, 6))}
    chosen = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
    return body | {name: draw(_value(name)) for name in chosen}


def bodies(path: str) -> st.SearchStrategy[bytes]:
    """Bodies for the endpoint at `path`: mostly objects with known names, some other JSON, some no JSON at all."""
    objects = _objects(path).map(_encoded)
    return st.one_of(objects, objects, objects, objects, objects, JUNK.map(_encoded), st.binary(max_size=40))


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()
