"""What a request is called, and the headers that say so. Pure functions of the request."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from uuid import uuid4

import msgspec

from streamserve.server.delivery.asgi import Headers
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.types import ANYONE, Tenant

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class Identity(msgspec.Struct, frozen=True):
    """What a request is called, by the answer's `id` and by the X-Request-Id header, and who waits for it.

    tenant      who sends it
    patience_s  seconds that its client waits for the answer; None where it does not say
    """

    answer_id: str
    header_id: str
    tenant: Tenant = ANYONE
    patience_s: float | None = None

    @property
    def owned_id(self) -> OwnedId:
        """The answer's id among those of its owner."""
        return OwnedId(self.tenant.name, self.answer_id)

    @property
    def engine_id(self) -> str:
        """What the ids of its sequences begin with; unique in the engine among those of all tenants."""
        return f"{self.tenant.name}/{self.answer_id}" if self.tenant.name else self.answer_id


def identify(
    prefix: str,
    request_id: str | None,
    header: str,
    *,
    tenant: Tenant,
    taken: Container[OwnedId],
    patience_s: float | None = None,
) -> Identity:
    """The ids of a request: its own `request_id`, else the client's X-Request-Id `header`, else a random one.

    prefix  what the answer's id begins with
    tenant  who sends it
    patience_s  as of `Identity`
    taken   ids of answers that can't be used again; only a `request_id` may be one of them, and is refused later
    """
    header = header if is_safe_id(header) else ""
    if request_id is not None:
        return Identity(prefix + request_id, header or prefix + request_id, tenant, patience_s)
    answer_id = prefix + header
    if not header or OwnedId(tenant.name, answer_id) in taken:
        # A gateway may stamp several requests alike; only an id in the body must be unique.
        answer_id = f"{prefix}{uuid4().hex}"
    return Identity(answer_id, header or answer_id, tenant, patience_s)


def is_safe_id(text: str) -> bool:
    """Whether a client's id may stand in headers and logs as it came."""
    return _SAFE_ID.fullmatch(text) is not None


def answer_headers(request_id: str, ignored: Sequence[str]) -> Headers:
    """Headers of every answer: its id, and a warning that names ignored parameters."""
    headers = [(b"x-request-id", request_id.encode())]
    if ignored:
        headers.append((b"warning", warning(ignored)))
    return headers


def warning(ignored: Sequence[str]) -> bytes:
    """A Warning header (RFC 7234, 5.5) that names ignored parameters, cut down to what a header may hold."""
    names = ", ".join(_UNSAFE.sub("?", name)[:64] for name in ignored[:16])
    return f'299 streamserve "parameters ignored: {names}"'.encode()
