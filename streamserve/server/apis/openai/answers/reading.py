"""Parses the text of a chat answer into a message: content, reasoning, tool calls, in the fields of the OpenAI API.

One reader per choice, on one API worker's event loop; streamed and whole answers use the same. Knows parsers by their protocol
only.
"""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streamserve.text.parsing.json_text import is_json
from streamserve.text.parsing.pieces import Content, Parser, Piece, Reasoning, ToolCallStart
from streamserve.types import TextDelta, TextLogprob

_MISTRAL_ALPHABET = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A new id for a tool call, which its result refers to."""
    return f"call_{secrets.token_hex(12)}"


def new_mistral_call_id() -> str:
    """As `new_call_id`, in the only form that Mistral's templates accept: nine letters and digits."""
    return "".join(secrets.choice(_MISTRAL_ALPHABET) for _ in range(9))


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """How the answers to one request are to be read.

    is_named         the request named the function to call: then making the call is no reason to stop
    shows_reasoning  whether reasoning is part of the message; else it is read and dropped
    """

    new_parser: Callable[[], Parser]
    new_call_id: Callable[[], str] = new_call_id
    is_named: bool = False
    shows_reasoning: bool = True


class MessageReader:
    """One choice of an answer."""

    def __init__(self, reading: Reading) -> None:
        self._parser = reading.new_parser()
        self._new_call_id = reading.new_call_id
        self._is_named = reading.is_named
        self._shows_reasoning = reading.shows_reasoning
        self._has_calls = False
        self._arguments: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[TextLogprob] = []

    @property
    def is_plain(self) -> bool:
        """Whether all further text is content and need not be read."""
        return self._parser.passes_through

    def read(self, delta: TextDelta) -> list[dict[str, Any]]:
        """The `delta` objects that a text makes, in order; none while it could still become a mark."""
        self._token_ids += delta.token_ids
        self._logprobs += delta.logprobs or ()
        pieces = self._parser.push(delta.text) if delta.text else []
        if delta.finish_reason is not None:
            pieces += self._parser.finish(is_cut=delta.finish_reason != "stop")
        if not self._shows_reasoning:
            pieces = [piece for piece in pieces if not isinstance(piece, Reasoning)]
        return [self._field(piece) for piece in _joined(pieces)]

    def take_tokens(self) -> tuple[list[int], list[TextLogprob]]:
        """The tokens, with their logprobs, that were read since the last call."""
        taken = self._token_ids, self._logprobs
        self._token_ids, self._logprobs = [], []
        return taken

    def finish_reason(self, reason: str | None) -> str | None:
        """The finish reason of the message, from that of its text: "tool_calls" only when the last call is whole."""
        if reason != "stop" or not self._has_calls or self._is_named:
            return reason
        return "tool_calls" if is_json("".join(self._arguments)) else reason

    def _field(self, piece: Piece) -> dict[str, Any]:
        match piece:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                # vLLM renamed the field; clients of its earlier versions and of DeepSeek read the older name.
                return {"reasoning": text, "reasoning_content": text}
            case ToolCallStart(call, name, id):
                self._has_calls = True
                self._arguments = []
                function = {"name": name, "arguments": ""}
                return {
                    "tool_calls": [{"index": call, "id": id or self._new_call_id(), "type": "function", "function": function}]
                }
            case _:
                self._arguments.append(piece.json)
                return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.json}}]}


class MessageBuilder:
    """A whole message put together from the `delta` objects of a stream."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {"content": [], "reasoning": []}
        self._calls: list[dict[str, Any]] = []

    def add(self, fields: dict[str, Any]) -> None:
        for name, value in fields.items():
            if name in self._texts:
                self._texts[name].append(value)
            elif name == "tool_calls":
                self._add_call(value[0])

    def as_object(self) -> dict[str, Any]:
        content, reasoning = ("".join(texts) for texts in self._texts.values())
        has_other_parts = bool(self._calls or reasoning)
        return message_object(
            None if has_other_parts and not content else content, reasoning=reasoning or None, tool_calls=self._calls
        )

    def _add_call(self, call: dict[str, Any]) -> None:
        if "id" in call:
            self._calls.append({name: value for name, value in call.items() if name != "index"})
        else:
            self._calls[-1]["function"]["arguments"] += call["function"]["arguments"]


def message_object(
    content: str | None, *, reasoning: str | None = None, tool_calls: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """A whole message: null where it has nothing, as in vLLM; `tool_calls`, which clients test for, where there are some."""
    message = {
        "role": "assistant",
        "content": content,
        "refusal": None,
        "annotations": None,
        "audio": None,
        "function_call": None,
        "reasoning": reasoning,
        "reasoning_content": reasoning,
    }
    return {**message, "tool_calls": tool_calls} if tool_calls else message


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Neighbours of one kind put together; what is empty left out."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if isinstance(piece, Content) and isinstance(last, Content):
            joined[-1] = Content(last.text + piece.text)
        elif isinstance(piece, Reasoning) and isinstance(last, Reasoning):
            joined[-1] = Reasoning(last.text + piece.text)
        else:
            joined.append(piece)
    return joined
