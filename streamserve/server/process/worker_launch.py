"""What an API worker is started with, and what it makes of that: its share of the counters and its side of the engines.

The first worker has it from the server's start, further ones as one line of JSON on their standard input: keys must not show
in a process list.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.replicas.replica_set import ReplicaSet
from streamserve.engine.replicas.routing_memory import RoutingMemory
from streamserve.engine.stream import StreamLimits
from streamserve.server.config import ServerConfig
from streamserve.server.http.connections.listen import Listen
from streamserve.server.siblings.siblings import internal_socket_path
from streamserve.server.telemetry.metrics import Metrics

ServedEngine = RemoteEngine | ReplicaSet
"""What a worker's requests go to."""


class WorkerLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """Launch parameters of a worker.

    worker            its number among those that may run at a time
    processes         how many those are: each has a region of the memory that they share
    control_fd        the inherited end of the control connection
    listening_fd      the inherited socket that it accepts from
    metrics_fd        the inherited memory of the counters, which all workers share
    routing_fd        the inherited memory of the router, which all workers share
    engine_addresses  of the engines' sockets, by replica
    """

    worker: int
    processes: int
    control_fd: int = -1
    listening_fd: int = -1
    metrics_fd: int
    routing_fd: int
    engine_addresses: list[str]
    engine_config: EngineConfig
    checkpoint: Checkpoint
    server_config: ServerConfig
    sampling_defaults: dict[str, Any]
    listen: Listen

    def metrics(self) -> Metrics:
        """This worker's share of the counters."""
        return Metrics(
            self.server_config.model_names[0],
            memory_fd=self.metrics_fd,
            worker=self.worker,
            workers=self.processes,
            engines=len(self.engine_addresses),
        )

    def engine(self, metrics: Metrics) -> ServedEngine:
        """This worker's side of the engines."""
        # The first worker ends the server when an engine can't start; others may be started later.
        awaits_start = self.worker > 0
        addresses, limits = self.engine_addresses, StreamLimits(stall_timeout_s=self.engine_config.stall_timeout_s)
        if len(addresses) > 1:
            memory = RoutingMemory(len(addresses), worker=self.worker, workers=self.processes, fd=self.routing_fd)
            return ReplicaSet(addresses, memory, awaits_start=awaits_start, on_given_up=metrics.give_up, stream_limits=limits)
        return RemoteEngine(
            addresses[0],
            reconnects=self.server_config.max_engine_restarts > 0,
            awaits_start=awaits_start,
            on_given_up=partial(metrics.give_up, 0),
            stream_limits=limits,
        )

    def internal_socket(self, worker: int) -> str:
        """The path of a worker's internal socket."""
        return internal_socket_path(self.engine_addresses[0], worker)
