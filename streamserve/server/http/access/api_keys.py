"""The API keys that open a server, and the tenant that each of them stands for.

One per API worker, on its event loop. Keeps hashes, no keys; knows no requests.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from hashlib import sha256

from streamserve.errors import AuthenticationFailed
from streamserve.server.config import ApiKey
from streamserve.types import ANYONE, Tenant


class ApiKeys:
    """The keys of a server; without any it is open to all."""

    def __init__(self, keys: Sequence[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def replace(self, keys: Sequence[ApiKey]) -> None:
        """Have these keys open the server from now on, and no others."""
        self._keys = tuple(keys)

    def tenant(self, name: str) -> Tenant:
        """A tenant with the limits that its key has now, by its name.

        For what goes on after a key was shown. Raises `AuthenticationFailed` when the key opens the server no longer.
        """
        if not self._keys:
            return ANYONE
        for key in self._keys:
            if key.tenant.name == name:
                return key.tenant
        raise AuthenticationFailed("the API key that this connection was opened with is no longer valid")

    def find(self, offered: Iterable[bytes]) -> tuple[ApiKey, bytes] | None:
        """The first key that is among those offered, and how it was offered; None when none is.

        All are compared, each in constant time, so that the time reveals nothing.
        """
        hashed = [(sha256(key).digest(), key) for key in offered]
        found = [(key, text) for key in self._keys for hash, text in hashed if hmac.compare_digest(key.sha256, hash)]
        return found[0] if found else None
