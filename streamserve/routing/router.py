"""The router: keeps what was sent where, and chooses a replica for each request.

Synchronous, without I/O, clock, tasks or engines: its user says how loaded each replica is, and sends the request there.

    router = Router(num_replicas=4)
    prefix = prefix_keys(token_ids, block_size=16, salt=cache_salt)
    number = router.route(prefix, loads=[3, 0, None, 7])    # None: takes no requests now

The API processes of a server with several replicas share one index. An ingress of Ray Serve has an index of its own and numbers
replicas as it meets them; the number of one that has left goes, once forgotten, to the next. In a simulation, time passes
between the calls. All three run this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from streamserve.routing.policy import Candidate, RoutingPolicy, choose
from streamserve.routing.prefix_index import PrefixIndex
from streamserve.routing.prefix_keys import PrefixKeys


class Router:
    """Chooses among replicas numbered from 0.

    num_replicas  numbers there are; more than there are replicas now, where some may join later
    index         what was sent where; by default the router's own
    """

    def __init__(self, num_replicas: int, *, policy: RoutingPolicy | None = None, index: PrefixIndex | None = None) -> None:
        self.policy = policy or RoutingPolicy()
        self._index = index or PrefixIndex(num_replicas)
        self._last_chosen = [0] * num_replicas
        self._turns = count(1)

    def route(self, prefix: PrefixKeys, loads: Sequence[float | None]) -> int | None:
        """Choose the replica for a prompt, and remember that it went there; None when none takes requests.

        loads  sequences that each replica has, running or waiting, by number; None for one that takes no requests
        """
        number = choose(self.candidates(prefix, loads), self.policy)
        if number is not None:
            self._index.add(number, prefix)
            self._last_chosen[number] = next(self._turns)
        return number

    def candidates(self, prefix: PrefixKeys, loads: Sequence[float | None]) -> list[Candidate | None]:
        """The replicas as a prompt finds them, by number; `loads` as in `route`."""
        return [
            None if load is None else Candidate(load, self._index.cached_tokens(number, prefix), self._last_chosen[number])
            for number, load in enumerate(loads)
        ]

    def forget(self, replica: int) -> None:
        """Forget what was sent to a replica: it has lost its prefix cache, or its number goes to another."""
        self._index.forget(replica)
        self._last_chosen[replica] = 0
