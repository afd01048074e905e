"""Ranks as actors of a Ray cluster: Ray finds places for them, on one node as long as it can, and starts their processes.

Ray carries no plan. Each rank connects to a socket of the engine's and proves that it knows a secret which Ray hands to actors;
from then on it is as any other rank. Ray's calls block, so they run on a thread; `ray` is imported when the first is made.
"""

from __future__ import annotations

import logging
import secrets
import socket
import time
from typing import Any

import msgspec

from streamserve.aio.daemon_thread import DaemonThread
from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, EngineDead
from streamserve.executor.launchers.handshake import ConnectedRank, StoreAddress, accept_rank, connect_to_engine
from streamserve.executor.launchers.ray_cluster import require_reachable_cluster
from streamserve.executor.messages import RankLaunch
from streamserve.executor.rank import run_rank
from streamserve.process.child import decode_with_paths, encode_with_paths

PLACEMENT_TIMEOUT_S = 120.0
"""Seconds that the cluster gets to find places for all ranks, which an autoscaler may have to start nodes for."""

CONNECT_TIMEOUT_S = 120.0
"""Seconds that an actor gets to start and connect; Ray may have to send it files first."""


class RayLauncher:
    """Starts an actor for each rank in a placement group of their own; satisfies `Launcher`.

    Takes the cluster that RAY_ADDRESS names or that runs on this machine, and starts one on this machine if there is none.
    """

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        self._config = config
        self._checkpoint = checkpoint
        self._cluster = _Cluster(config)
        self._thread: DaemonThread | None = None

    @property
    def actors(self) -> list[Any]:
        """Ray's handles of the ranks that were started, by rank."""
        return self._cluster.actors

    async def launch(self) -> list[socket.socket]:
        # One thread for all: what Ray starts on this machine is killed by the kernel when the thread that started it ends.
        self._thread = DaemonThread("streamserve-ray")
        return await self._thread.run(lambda: self._cluster.launch(self._checkpoint))

    def fate(self, rank: int) -> str:
        return self._cluster.fate(rank)

    async def stop(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await thread.run(self._cluster.stop)
            thread.close()


class _Cluster:
    """The placement group and actors of one engine. Its methods block."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self.actors: list[Any] = []
        self._runs: list[Any] = []
        self._group: Any = None
        self._is_ours = False

    def launch(self, checkpoint: Checkpoint) -> list[socket.socket]:
        import ray

        if not ray.is_initialized():
            require_reachable_cluster()
            self._is_ours = True
            # Several engines share a cluster, or each would start one, and all would take the same GPUs.
            address = None if self._config.data_parallel_size == 1 else "auto"
            try:
                ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
            except ConnectionError as error:
                problem = str(error).rstrip(".")
                raise ConfigError(
                    f"{problem}: start one with `ray start --head`, or check RAY_ADDRESS, and that `ray status` works from here"
                ) from error
        resources = self._resources(ray.cluster_resources())
        self._place(resources)
        secret = secrets.token_bytes(32)
        host = ray.util.get_node_ip_address()
        with socket.create_server((host, 0)) as listening:
            self._start_actors(checkpoint, resources, (host, listening.getsockname()[1]), secret)
            return self._accept_ranks(listening, secret)

    def fate(self, rank: int) -> str:
        import ray

        try:
            ray.get(self._runs[rank], timeout=1.0)
        except ray.exceptions.GetTimeoutError:
            return "closed its connection"
        except ray.exceptions.RayError as error:
            return f"was lost by Ray: {str(error).strip().splitlines()[0]}"
        return "ended"

    def stop(self) -> None:
        import ray

        if not ray.is_initialized():
            return
        for actor in self.actors:
            ray.kill(actor)
        if self._group is not None:
            ray.util.remove_placement_group(self._group)
        if self._is_ours:
            ray.shutdown()

    def _resources(self, cluster: dict[str, float]) -> dict[str, float]:
        """What a rank takes. Raises `ConfigError` when the cluster has less than that for each."""
        config = self._config
        name = "CPU" if config.device == "cpu" or (config.device == "auto" and not cluster.get("GPU")) else "GPU"
        there = int(cluster.get(name, 0))
        if there < config.num_ranks:
            raise ConfigError(
                f"--tensor-parallel-size {config.tensor_parallel_size} and --data-parallel-size {config.data_parallel_size} "
                f"need {config.num_ranks} {name}s; the Ray cluster has {there}: lower one of them or add nodes"
            )
        return {name: 1.0}

    def _place(self, resources: dict[str, float]) -> None:
        import ray

        self._group = ray.util.placement_group([resources] * self._config.tensor_parallel_size, strategy="PACK")
        if not self._group.wait(PLACEMENT_TIMEOUT_S):
            raise ConfigError(
                f"the Ray cluster had no place for {self._config.tensor_parallel_size} ranks in {PLACEMENT_TIMEOUT_S:g} s: "
                "free what others hold of it, add nodes, or lower --tensor-parallel-size"
            )

    def _start_actors(
        self, checkpoint: Checkpoint, resources: dict[str, float], address: tuple[str, int], secret: bytes
    ) -> None:
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        for rank in range(self._config.tensor_parallel_size):
            launch = RankLaunch(config=self._config, checkpoint=checkpoint, rank=rank)
            actor = ray.remote(_RankActor).options(
                num_cpus=resources.get("CPU", 0.0),
                num_gpus=resources.get("GPU", 0.0),
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=rank),
                # GPUs map each other's memory only where each process sees all of them.
                runtime_env={"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}},
            )
            self.actors.append(actor.remote())
            self._runs.append(self.actors[-1].run.remote(encode_with_paths(launch), address, secret))

    def _accept_ranks(self, listening: socket.socket, secret: bytes) -> list[socket.socket]:
        """Wait for every rank to connect, and tell all where the first one keeps the store."""
        connected: dict[int, ConnectedRank] = {}
        listening.settimeout(0.2)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while len(connected) < self._config.tensor_parallel_size:
            self._raise_for_ended()
            if time.monotonic() > deadline:
                raise EngineDead(f"only {len(connected)} of {self._config.tensor_parallel_size} ranks have connected in time")
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            if (accepted := accept_rank(connection, secret)) is not None:
                connected[accepted.rank] = accepted
        for each in connected.values():
            each.admit(StoreAddress(connected[0].store))
        return [connected[rank].connection for rank in sorted(connected)]

    def _raise_for_ended(self) -> None:
        import ray

        ended, _ = ray.wait(self._runs, num_returns=1, timeout=0)
        if ended:
            rank = self._runs.index(ended[0])
            raise EngineDead(f"rank {rank} {self.fate(rank)}")


class _RankActor:
    """A process of Ray's that becomes a rank."""

    def run(self, line: bytes, address: tuple[str, int], secret: bytes) -> None:
        """Connect to the engine and run the rank; ends with the process."""
        import ray

        launch = decode_with_paths(line, RankLaunch)
        gpus = ray.get_gpu_ids()
        connection, store, store_fd = connect_to_engine(address, secret, launch.rank, timeout_s=CONNECT_TIMEOUT_S)
        device_index = int(gpus[0]) if gpus else None
        run_rank(msgspec.structs.replace(launch, store=store, store_fd=store_fd, device_index=device_index), connection)
