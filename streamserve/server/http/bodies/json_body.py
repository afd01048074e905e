"""JSON of clients as Python objects: counted first, refused or decoded after.

The decoder holds the interpreter until it is done, on any thread; so what would take it long is refused, but for token ids, of
which honest batches have a million: those are decoded a slice at a time. Pure functions; for a large body, to be called off the
event loop (`large_work`).
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from streamserve.errors import InvalidParameter, InvalidRequest
from streamserve.server.http.bodies.json_structure import JsonStructure

MAX_ELEMENTS = 65536
"""Objects, arrays, strings and names of members of one body, and values of one member that are not token ids."""

MAX_TOKEN_IDS = 1 << 20
"""Token ids of one member: they take a few milliseconds to free."""

MAX_MEMBER_BYTES = 8 << 20
"""Text of one member, if it is not of token ids: it takes up to ten milliseconds to decode."""

COUNTED_BYTES = 64 << 10
"""Texts up to this size are decoded as they come: in a few milliseconds, whatever they hold."""

PIECE_BYTES = 512 << 10
SLICE_BYTES = 256 << 10

_Ids = list[Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]]
_ID_FIELDS = ("prompt", "tokens", "allowed_token_ids", "stop_token_ids")


class NotAnObject(InvalidRequest):
    """The body is no JSON, or none of an object."""


class TokenIds(list[Any]):
    """A long list of token ids, or a list of such lists; checked to be integers of 32 bits."""


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object; lists of more than `MAX_ELEMENTS` token ids are `TokenIds`.

    Raises `NotAnObject`, `InvalidRequest` for one that holds too much, or `InvalidParameter` for a member that does.
    """
    if len(body) <= COUNTED_BYTES:
        return _as_object(_decode(body, Any))
    if not body.lstrip().startswith(b"{"):
        raise NotAnObject("the body must be a JSON object")
    num_commas = _counted(body).commas
    if num_commas > MAX_TOKEN_IDS + MAX_ELEMENTS:
        raise InvalidRequest(f"the body holds more than {MAX_TOKEN_IDS} token ids: send fewer at a time")
    if num_commas <= MAX_ELEMENTS and len(body) <= MAX_MEMBER_BYTES:
        return _as_object(_decode(body, Any))
    members = _decode(body, dict[str, msgspec.Raw])
    return {name: _member(name, bytes(raw)) for name, raw in members.items()}


def _counted(text: bytes) -> JsonStructure:
    """What a text holds. Raises `InvalidRequest` for more than may be decoded at once."""
    structure = JsonStructure()
    for start in range(0, len(text), PIECE_BYTES):
        structure.feed(text[start : start + PIECE_BYTES], max_strings=MAX_ELEMENTS)
        if structure.strings + structure.containers > MAX_ELEMENTS:
            raise InvalidRequest(f"the body holds more than {MAX_ELEMENTS} objects, arrays and strings: send fewer at a time")
    return structure


def _member(name: str, text: bytes) -> Any:
    num_commas = 0 if len(text) <= COUNTED_BYTES else _counted(text).commas
    if num_commas <= MAX_ELEMENTS and len(text) <= MAX_MEMBER_BYTES:
        return _decode(text, Any)
    if num_commas <= MAX_ELEMENTS:
        raise InvalidParameter(name, f"must be at most {MAX_MEMBER_BYTES} bytes of JSON, got {len(text)}")
    if name not in _ID_FIELDS:
        raise InvalidParameter(name, f"must hold at most {MAX_ELEMENTS} values")
    if num_commas >= MAX_TOKEN_IDS:
        raise InvalidParameter(name, f"must hold at most {MAX_TOKEN_IDS} token ids: send fewer at a time")
    try:
        return _token_ids(text, nested=name == "prompt")
    except msgspec.DecodeError as error:
        reason = str(error).partition(" - at ")[0]
        raise InvalidParameter(name, f"must hold token ids alone, being this long: {reason}") from None


def _token_ids(text: bytes, *, nested: bool) -> TokenIds:
    token_ids = TokenIds()
    if not (nested and text[1:].lstrip().startswith(b"[")):
        _add_ids(token_ids, text)
        return token_ids
    for each in msgspec.json.decode(text, type=list[msgspec.Raw]):
        prompt: list[int] = []
        _add_ids(prompt, bytes(each))
        token_ids.append(prompt)
    return token_ids


def _add_ids(token_ids: list[int], text: bytes) -> None:
    if len(text) <= SLICE_BYTES or not text.startswith(b"["):
        token_ids += msgspec.json.decode(text, type=_Ids)
        return
    start, end = 1, len(text) - 1
    while start < end:
        stop = text.find(b",", start + SLICE_BYTES, end)
        stop = end if stop < 0 else stop
        token_ids += msgspec.json.decode(b"[%b]" % text[start:stop], type=_Ids)
        start = stop + 1


def _decode(text: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    except RecursionError:
        raise NotAnObject("the body is not acceptable JSON: nested too deeply") from None
    except ValueError as error:
        raise NotAnObject(f"the body is not valid JSON: {error}") from None


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NotAnObject(f"the body must be a JSON object, got {_json_type(value)}")
    return value


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")
