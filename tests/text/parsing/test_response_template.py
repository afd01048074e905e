"""Dialects that a checkpoint describes itself, as transformers documents it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from streamserve.text.loading import load_parts
from streamserve.text.parsing.dialects.registry import RESPONSE_TEMPLATE, dialect_of
from tests.text.parsing.read import Read, read

SMOL = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "thinking": {"open": "<thought>", "close": "</thought>", "content": "text"},
        "tool_calls": {
            "open": "<call>",
            "close": "</call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close": "<|im_end|>", "content": "text"},
    },
}
COMMAND: dict[str, Any] = {
    "start_anchor": "<|CHATBOT_TOKEN|>",
    "fields": {
        "tool_calls": {
            "open": "<|START_ACTION|>",
            "close": "<|END_ACTION|>",
            "content": "json",
            "transform_each": True,
            "transform": {"type": "function", "function": {"name": "{tool_name}", "arguments": "{parameters}"}},
        },
    },
}


@pytest.mark.parametrize(
    ("template", "text", "expected"),
    [
        (
            SMOL,
            '<thought>hm</thought>\nyes\n<call>{"name": "f", "arguments": {"x": 1}}</call>',
            ("hm", "yes", [("f", '{"x": 1}')]),
        ),
        (
            COMMAND,
            '<|START_ACTION|>[\n {"tool_call_id": "0", "tool_name": "f", "parameters": {"x": 1}},\n'
            ' {"tool_name": "g", "parameters": {}}\n]<|END_ACTION|>',
            ("", "", [("f", '{"x": 1}'), ("g", "{}")]),
        ),
    ],
)
def test_it_goes_before_the_chat_template(template: dict[str, Any], text: str, expected: Read) -> None:
    dialect = dialect_of("<tool_call>", response_template=template)
    assert dialect.tool_calls == RESPONSE_TEMPLATE
    new_parser = dialect.parser_factory("", functions={"f": {}})
    assert new_parser is not None
    for parts in ([text], list(text)):
        assert read(new_parser(), parts) == expected


def test_the_flags_go_before_it_and_what_it_can_not_say_in_literals_is_left_to_the_chat_template() -> None:
    assert dialect_of("", response_template=SMOL, tool_call_parser="mistral").tool_calls == "mistral"
    field = {"open_pattern": "<tool_call>\\s*", "content": "json", "transform": {"function": "{content}"}}
    for template in ({"fields": {"tool_calls": field}}, {"fields": []}, "nonsense", {"version": 2, **SMOL}):
        assert dialect_of("<tool_call>", response_template=template).tool_calls == "hermes"


def test_it_is_read_from_the_tokenizers_configuration(tmp_path: Path) -> None:
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"response_template": SMOL}))
    assert load_parts(tmp_path, trust_remote_code=False).response_template == SMOL
