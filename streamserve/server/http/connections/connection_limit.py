"""How many connections one API worker holds, which is less than it has descriptors for.

Without descriptors, connections would be closed as they are accepted, those of probes and metrics too, and nothing would say
why. Lives on one API worker's event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic

from streamserve.errors import Unavailable

logger = logging.getLogger("streamserve.server")

RESERVED = 128
"""Descriptors kept for all else: the engine's socket, other workers, files, and `SPARE` connections."""

SPARE = 32
"""Connections beyond the limit that may still ask for a probe's path."""

EXCESS_TIMEOUT_S = 2.0
"""Read timeout of those."""

LOG_INTERVAL_S = 60.0


class TooManyConnections(Unavailable):
    """The server has as many connections as it can hold."""

    code = "too_many_connections"

    def __init__(self) -> None:
        super().__init__("the server has as many connections as it can hold: try again, or over one that is open")


class ConnectionLimit:
    """A limit on connections.

    most    connections that are served
    spare   connections beyond these that may ask for `always`
    always  paths that are answered nevertheless
    """

    def __init__(self, most: int, *, spare: int = SPARE, always: Iterable[str] = ()) -> None:
        self._most = most
        self._spare = spare
        self._always = frozenset(path.encode() for path in always)
        self._logged_at: float | None = None

    def is_exceeded(self, connections: int) -> bool:
        """Whether the newest of so many connections is in excess. Logs it, at most once a minute."""
        if connections <= self._most:
            return False
        now = monotonic()
        if self._logged_at is None or now - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            logger.warning("%d connections are open: further ones are refused; raise ulimit -n", self._most)
        return True

    def is_exhausted(self, connections: int) -> bool:
        """Whether the newest of so many connections can't be answered at all."""
        return connections > self._most + self._spare

    def serves_always(self, url: bytes) -> bool:
        """Whether this target of a request is answered in excess of the limit, too."""
        return url.partition(b"?")[0] in self._always


def connections_for(descriptors: int) -> int:
    """Connections that a process with so many descriptors can hold."""
    return max(descriptors - RESERVED, descriptors // 2)
