"""Messages of clients, checked; and the messages that the server sends outside of any stream.

`take_resumable` alone changes its argument.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from streamserve.errors import InvalidParameter, InvalidRequest, StreamserveError
from streamserve.server.http.bodies.json_body import NotAnObject, parse_object
from streamserve.server.http.bodies.large_work import LargeWork
from streamserve.server.http.bodies.request_body import Body, unfit
from streamserve.server.http.errors import error_object

MAX_STREAM_ID = 64
MAX_HALVED_CHARS = 1 << 20
"""Of a message that is searched for halves of surrogate pairs."""

_HALF_PAIR = re.compile(r"(\\\\|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u[dD][89a-fA-F]..")
TERMINAL = frozenset(
    {
        "chat.completion.done",
        "completion.done",
        "response.completed",
        "response.failed",
        "response.incomplete",
        "error",
    }
)
"""Types of the messages that end a stream."""


async def parse(text: str, large_work: LargeWork) -> Body | None:
    """The JSON object of a message; None when it is no JSON object.

    Raises `InvalidRequest` for one that holds too much, `TooManyBodies` when too many others wait.
    """
    run = large_work.runner(len(text))
    with large_work.memory.hold() as held:
        held.grow(len(text))
        fields = await run(partial(_parse, text))
    return None if fields is None else Body(fields, run)


def _parse(text: str) -> dict[str, Any] | None:
    try:
        return parse_object(text.encode())
    except NotAnObject as fault:
        return _parse_halved(text, fault)


def _parse_halved(text: str, fault: NotAnObject) -> dict[str, Any] | None:
    """As `_parse`, reading half of a surrogate pair as U+FFFD, as a browser sends it outside of JSON.

    JavaScript writes a text cut inside a character so, which is JSON but no Unicode: one such text must not close the socket on
    all streams. Nor does a long one, which is refused: searching it would hold up the interpreter.
    """
    if len(text) > MAX_HALVED_CHARS:
        raise InvalidRequest(fault.message)
    whole = _HALF_PAIR.sub(lambda match: match[1] or "\\ufffd", text)
    try:
        return None if whole == text else parse_object(whole.encode())
    except NotAnObject:
        return None


def stream_id_of(message: Mapping[str, Any], *, required: bool = False) -> str | None:
    """The stream a message names. Raises `InvalidParameter`."""
    stream_id = message.get("stream_id")
    if stream_id is None:
        if required:
            raise InvalidParameter("stream_id", "is required: choose any string")
        return None
    if not isinstance(stream_id, str) or not 0 < len(stream_id) <= MAX_STREAM_ID:
        raise InvalidParameter("stream_id", f"must be a string of 1 to {MAX_STREAM_ID} characters")
    return stream_id


def response_id_of(message: Mapping[str, Any]) -> str | None:
    """The response a message names. Raises `InvalidParameter`."""
    response_id = message.get("response_id")
    if not isinstance(response_id, str | None):
        raise InvalidParameter("response_id", "must be a string")
    return response_id


def starting_after_of(message: Mapping[str, Any]) -> int:
    """The number of the last event that a client has seen. Raises `InvalidParameter`."""
    number = message.get("starting_after", -1)
    if not isinstance(number, int) or isinstance(number, bool) or number < -1:
        raise InvalidParameter("starting_after", "must be the sequence_number of the last event seen, or -1 for none")
    return number


def take_resumable(body: dict[str, Any]) -> bool:
    """Remove `resumable` from the body of a create, which leaves the body of a POST; returns its value.

    Raises `InvalidParameter`.
    """
    if body.setdefault("stream", True) is not True:
        raise InvalidParameter("stream", "a socket carries streams only; leave it out")
    is_resumable = body.pop("resumable", False)
    if not isinstance(is_resumable, bool):
        raise InvalidParameter("resumable", "must be true or false")
    return is_resumable


def error_message(error: StreamserveError, stream_id: str | None = None) -> str:
    """An `error` message; without `stream_id` it concerns a message that named no stream."""
    message: dict[str, Any] = {"type": "error"}
    if stream_id is not None:
        message["stream_id"] = stream_id
    return orjson.dumps({**message, "status": error.status, **error_object(error)}).decode()


def pong_message(message: Mapping[str, Any]) -> str:
    """The answer to a ping, with its id. Raises `InvalidParameter`."""
    if (reason := unfit({"id": message.get("id")})) is not None:
        raise InvalidParameter("id", reason)
    answer = {"type": "pong"}
    if "id" in message:
        answer["id"] = message["id"]
    return orjson.dumps(answer).decode()
