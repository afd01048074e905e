"""Ids of what a tenant makes. Plain values."""

from __future__ import annotations

from typing import NamedTuple

from litestar.types import Scope

from streamserve.server.http.access.auth import tenant_of


class OwnedId(NamedTuple):
    """What is kept here is called so: each tenant has ids of its own, and another's are as unknown as any.

    owner  the tenant's name
    """

    owner: str
    id: str


def owned_id(scope: Scope, id: str) -> OwnedId:
    """What the sender of a request calls `id`."""
    return OwnedId(tenant_of(scope).name, id)
