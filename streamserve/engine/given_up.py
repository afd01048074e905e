"""Requests that were given up since engines ended under them, so that the same one is not taken again at once.

On both sides of the engine socket: an API worker keeps those that it gave up, and tells each new engine; the engine refuses
them, whichever worker they come through. Known by a hash of prompt and parameters; no prompt is kept.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from hashlib import blake2b
from time import monotonic

import msgspec

from streamserve.errors import EndsEngines
from streamserve.types import SequenceSpec

REFUSED_FOR_S = 600.0
"""Seconds for which such a request is refused."""

MAX_KEPT = 256
"""The oldest make room."""


def fingerprint(spec: SequenceSpec) -> bytes:
    """16 bytes that a request's copies share: of its prompt and parameters, not of its seed, which differs by default."""
    sampling = msgspec.structs.replace(spec.sampling, seed=0)
    digest = blake2b(array("q", spec.prompt_token_ids).tobytes(), digest_size=16)
    digest.update(msgspec.msgpack.encode((sampling, spec.structured_outputs, spec.pooling)))
    return digest.digest()


class GivenUp:
    """Fingerprints of requests that were given up, each for `REFUSED_FOR_S`."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._until: dict[bytes, float] = {}

    @property
    def fingerprints(self) -> list[bytes]:
        """Those that count now."""
        now = self._clock()
        self._until = {key: until for key, until in self._until.items() if until > now}
        return list(self._until)

    def add(self, fingerprints: Iterable[bytes]) -> None:
        """Refuse these from now on."""
        until = self._clock() + REFUSED_FOR_S
        for key in fingerprints:
            self._until.pop(key, None)
            self._until[key] = until
        while len(self._until) > MAX_KEPT:
            del self._until[next(iter(self._until))]

    def check(self, specs: Iterable[SequenceSpec]) -> None:
        """Raises `EndsEngines` when one of the sequences is of a request that was given up."""
        # Empty but for minutes after a fault: nothing is hashed then.
        if self._until and (known := set(self.fingerprints)) and any(fingerprint(spec) in known for spec in specs):
            raise EndsEngines("the engine has ended under this request before; it is refused for some minutes")
