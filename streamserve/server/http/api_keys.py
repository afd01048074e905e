"""The API keys that open a server, and the tenant that each of them stands for.

One per API worker, on its event loop. Keeps hashes, no keys; knows no requests.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from hashlib import sha256

import msgspec

from streamserve.types import Tenant


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key, by its SHA-256, and who sends it."""

    sha256: bytes
    tenant: Tenant


class ApiKeys:
    """The keys of a server; without any it is open to all."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, offered: Iterable[bytes]) -> tuple[ApiKey, bytes] | None:
        """The first key that is among those offered, and how it was offered; None when none is.

        All are compared, each in constant time, so that the time reveals nothing.
        """
        hashed = [(sha256(key).digest(), key) for key in offered]
        found = [(key, text) for key in self._keys for hash, text in hashed if hmac.compare_digest(key.sha256, hash)]
        return found[0] if found else None


def numbered(keys: Sequence[str]) -> list[ApiKey]:
    """Keys of the command line: each is a tenant called `key-` and its number, from 1 on."""
    return [
        ApiKey(sha256=sha256(key.encode()).digest(), tenant=Tenant(name=f"key-{number}"))
        for number, key in enumerate(keys, start=1)
    ]
