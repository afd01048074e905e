"""The phase that a server is in, and whether requests are taken in it.

    loading ──► ready ──► draining
       └───────────┴────────┴──► dead

Lives on one API worker's event loop.
"""

from __future__ import annotations

from enum import Enum

from streamserve.errors import EngineDead, Unavailable


class Phase(Enum):
    """loading: no model yet; ready: serving; draining: finishing what runs; dead: the engine is gone."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class Lifecycle:
    """The current phase; moves forward only."""

    def __init__(self) -> None:
        self._phase = Phase.LOADING

    @property
    def phase(self) -> Phase:
        return self._phase

    def serve(self) -> None:
        if self._phase is Phase.LOADING:
            self._phase = Phase.READY

    def drain(self) -> None:
        if self._phase is not Phase.DEAD:
            self._phase = Phase.DRAINING

    def die(self) -> None:
        self._phase = Phase.DEAD

    def require_ready(self) -> None:
        """Raises `Unavailable` (or `EngineDead`) unless requests are taken."""
        if self._phase is Phase.LOADING:
            raise Unavailable("the model is still loading; /ready answers 200 when it can be used")
        if self._phase is Phase.DRAINING:
            raise Unavailable("the server is shutting down and takes no new requests")
        if self._phase is Phase.DEAD:
            raise EngineDead("the engine has stopped; the server must be started again")
