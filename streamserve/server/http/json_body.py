"""JSON of clients as Python objects, on an event loop that other streams share: counted first, refused or decoded after.

The decoder holds the interpreter until it is done, on any thread; so what would take it long is refused, but for token ids, of
which honest batches have millions: those are decoded a slice at a time.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from anyio.lowlevel import checkpoint

from streamserve.errors import InvalidParameter, InvalidRequest
from streamserve.server.http.json_structure import JsonStructure

MAX_ELEMENTS = 65536
"""Objects, arrays, strings and names of members of one body, and values of one member that are not token ids."""

COUNTED_BYTES = 64 << 10
"""Bodies up to this size are decoded as they come: in a few milliseconds, whatever they hold."""

PIECE_BYTES = 512 << 10
SLICE_BYTES = 256 << 10

_Ids = list[Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]]
_ID_FIELDS = ("prompt", "tokens", "allowed_token_ids", "stop_token_ids")


class NotAnObject(InvalidRequest):
    """The body is no JSON, or none of an object."""


class TokenIds(list[Any]):
    """A long list of token ids, or a list of such lists; checked to be integers of 32 bits."""


async def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object; lists of more than `MAX_ELEMENTS` token ids are `TokenIds`. Other tasks run while a long one is read.

    Raises `NotAnObject`, `InvalidRequest` for one that holds too much, or `InvalidParameter` for a member that does.
    """
    if len(body) <= COUNTED_BYTES:
        return _as_object(_decode(body, Any))
    if not body.lstrip().startswith(b"{"):
        raise NotAnObject("the body must be a JSON object")
    if (await _structure(body)).commas <= MAX_ELEMENTS:
        return _as_object(_decode(body, Any))
    members = _decode(body, dict[str, msgspec.Raw])
    return {name: await _member(name, bytes(raw)) for name, raw in members.items()}


async def _structure(text: bytes) -> JsonStructure:
    """What a text holds. Raises `InvalidRequest` for more than may be decoded at once."""
    structure = JsonStructure()
    for start in range(0, len(text), PIECE_BYTES):
        structure.feed(text[start : start + PIECE_BYTES], max_strings=MAX_ELEMENTS)
        if structure.strings + structure.containers > MAX_ELEMENTS:
            raise InvalidRequest(f"the body holds more than {MAX_ELEMENTS} objects, arrays and strings: send fewer at a time")
        await checkpoint()
    return structure


async def _member(name: str, text: bytes) -> Any:
    if len(text) <= COUNTED_BYTES or (await _structure(text)).commas <= MAX_ELEMENTS:
        return _decode(text, Any)
    if name not in _ID_FIELDS:
        raise InvalidParameter(name, f"must hold at most {MAX_ELEMENTS} values")
    try:
        return await _token_ids(text, nested=name == "prompt")
    except msgspec.ValidationError as error:
        reason = str(error).partition(" - at ")[0]
        raise InvalidParameter(name, f"must hold token ids alone, being this long: {reason}") from None


async def _token_ids(text: bytes, *, nested: bool) -> TokenIds:
    if not (nested and text[1:].lstrip().startswith(b"[")):
        return TokenIds(await _flat(text))
    return TokenIds([await _flat(bytes(each)) for each in msgspec.json.decode(text, type=list[msgspec.Raw])])


async def _flat(text: bytes) -> list[int]:
    if len(text) <= SLICE_BYTES:
        return msgspec.json.decode(text, type=_Ids)
    token_ids: list[int] = []
    start, end = 1, len(text) - 1
    while start < end:
        stop = text.find(b",", start + SLICE_BYTES, end)
        stop = end if stop < 0 else stop
        token_ids += msgspec.json.decode(b"[%b]" % text[start:stop], type=_Ids)
        start = stop + 1
        await checkpoint()
    return token_ids


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
