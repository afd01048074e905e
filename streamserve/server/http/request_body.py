"""How the body of a request becomes a typed struct; the same for every API.

Strict about types (the error names the parameter) and lenient about names: fields that the struct does not have are
returned, so that the answer can carry a warning. Pure functions, but for `read_body`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from streamserve.errors import InvalidRequest, RequestAborted, invalid_value

T = TypeVar("T", bound=msgspec.Struct)

MAX_DEPTH = 128
"""Objects and arrays within each other: far more than a schema needs, far less than it takes to run out of stack."""

MIN_INT, MAX_INT = -(2**63), 2**64 - 1
_TOKEN_IDS = ("prompt", "tokens")


async def read_body(request: Request[Any, Any, Any]) -> bytes:
    """The whole body. Raises `RequestAborted` when the client disconnects before its end."""
    try:
        return await request.body()
    except InternalServerException:
        # The only fault that Litestar finds here.
        raise RequestAborted("the client disconnected before its request had arrived") from None


def decode(body: bytes, kind: type[T]) -> tuple[T, list[str]]:
    """The body as `kind`, and the top-level fields that `kind` does not have.

    Raises `InvalidRequest` when it is not a JSON object and `InvalidParameter` naming the first parameter of a wrong type.
    """
    return convert(parse_object(body), kind)


def convert(fields: dict[str, Any], kind: type[T]) -> tuple[T, list[str]]:
    """As `decode`, from JSON that has been parsed already."""
    try:
        request = msgspec.convert(fields, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise invalid_value(str(error)) from None
    # Not the token ids, of which there may be millions: their type and range are checked anyway.
    reason = unfit({name: value for name, value in fields.items() if name not in _TOKEN_IDS})
    if reason is not None:
        raise InvalidRequest(f"the body {reason}")
    known = kind.__struct_fields__
    return request, [name for name in fields if name not in known]


def parse_object(body: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises `InvalidRequest`."""
    try:
        fields = msgspec.json.decode(body)
    except RecursionError:
        raise InvalidRequest("the body is not acceptable JSON: nested too deeply") from None
    except ValueError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequest(f"the body must be a JSON object, got {_json_type(fields)}")
    return fields


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    return {dict: "an object", list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")


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
