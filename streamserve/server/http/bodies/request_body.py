"""How the body of a request becomes a typed struct; the same for every API.

Strict about types (the error names the parameter) and lenient about names: fields that no struct has, at whatever level, are
returned, so that the answer can carry a warning. What takes long for a large body is done off the event loop (`large_work`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
from anyio import CancelScope
from litestar import Request
from litestar.exceptions import InternalServerException

from streamserve.errors import InvalidRequest, RequestAborted, invalid_value
from streamserve.server.http.bodies.body_memory import TooManyBodies
from streamserve.server.http.bodies.json_body import TokenIds, parse_object
from streamserve.server.http.bodies.large_work import CallRunner, LargeWork

T = TypeVar("T", bound=msgspec.Struct)

MAX_DEPTH = 128
"""Objects and arrays within each other: far more than a schema needs, far less than it takes to run out of stack."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1
_TOKEN_IDS = ("prompt", "tokens")


async def read_body(request: Request[Any, Any, Any], large_work: LargeWork) -> bytes:
    """The whole body.

    Raises `RequestAborted` when the client disconnects before its end, `TooManyBodies` when it has to make room for others.
    """
    with CancelScope() as scope, large_work.memory.hold(drop=scope.cancel) as held:
        try:
            chunks: list[bytes] = []
            async for chunk in request.stream():
                chunks.append(chunk)
                held.grow(len(chunk))
            return b"".join(chunks)
        except InternalServerException:
            # The only fault that Litestar finds here.
            raise RequestAborted("the client disconnected before its request had arrived") from None
    raise TooManyBodies


class Body(NamedTuple):
    """A body that is JSON.

    fields  of its object
    run     what runs work on them: at once, or off the event loop because they are many
    """

    fields: dict[str, Any]
    run: CallRunner


class Decoded(NamedTuple, Generic[T]):
    """A body that has been read.

    ignored  paths of the fields that no struct has
    run      as in `Body`
    """

    request: T
    ignored: list[str]
    run: CallRunner


async def parse(body: bytes, large_work: LargeWork) -> Body:
    """The body's fields.

    Raises `InvalidRequest` when it is not a JSON object, or holds too much, `TooManyBodies` when too many others wait.
    """
    run = large_work.runner(len(body))
    with large_work.memory.hold() as held:
        held.grow(len(body))
        return Body(await run(partial(parse_object, body)), run)


async def read(request: Request[Any, Any, Any], large_work: LargeWork) -> Body:
    """The fields of a request's body. Raises as `read_body` and `parse`."""
    return await parse(await read_body(request, large_work), large_work)


async def decode(body: bytes, kind: type[T], large_work: LargeWork) -> Decoded[T]:
    """The body as `kind`. Raises as `parse` and `convert`."""
    return await convert(await parse(body, large_work), kind)


async def convert(body: Body, kind: type[T]) -> Decoded[T]:
    """The body as `kind`. Raises `InvalidParameter` naming the first parameter of a wrong type."""
    request, ignored = await body.run(partial(_convert, body.fields, kind))
    return Decoded(request, ignored, body.run)


def _convert(fields: dict[str, Any], kind: type[T]) -> tuple[T, list[str]]:
    """The request, and the paths of ignored fields."""
    long = {name: value for name, value in fields.items() if type(value) is TokenIds}
    try:
        request = msgspec.convert({**fields, **{name: _sample(ids) for name, ids in long.items()}}, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise invalid_value(str(error)) from None
    for name in long.keys() & set(kind.__struct_fields__):
        setattr(request, name, long[name])
    # Not the token ids, of which there may be a million: their type and range are checked anyway.
    reason = unfit({name: value for name, value in fields.items() if name not in _TOKEN_IDS and name not in long})
    if reason is not None:
        raise InvalidRequest(f"the body {reason}")
    return request, list(_unknown(fields, request))


def _sample(token_ids: TokenIds) -> list[Any]:
    """The beginning of token ids, which has the type of all of them."""
    return [each[:1] if isinstance(each, list) else each for each in token_ids[:1]]


def _unknown(fields: Mapping[str, Any], request: msgspec.Struct, path: str = "") -> Iterator[str]:
    """Paths of the fields that their struct does not have."""
    known = request.__struct_fields__
    for name, value in fields.items():
        if name not in known:
            yield path + name
        elif isinstance(value, dict) and isinstance(inner := getattr(request, name), msgspec.Struct):
            yield from _unknown(value, inner, f"{path}{name}.")


def unfit(value: Mapping[str, Any]) -> str | None:
    """The reason why JSON can not be encoded again: integers or nesting out of bounds; None when it can."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for each in level:
            for child in each.values() if isinstance(each, Mapping) else each:
                kind = type(child)
                if kind is dict or kind is list:
                    inner.append(child)
                elif kind is int and not MIN_INT <= child <= MAX_INT:
                    return "holds a whole number of more than 64 bits"
        if not inner:
            return None
        level = inner
    return f"is nested too deeply: at most {MAX_DEPTH} objects and arrays within each other"
