"""One API worker of an application: the HTTP app that Ray Serve's proxies reach, before all engines of the application.

A deployment of Ray Serve, on its replica's event loop. It is the API worker of `streamserve serve`, less the port: it routes
requests to engines itself, and holds what it takes to continue their streams when one of them ends.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from litestar.types import ASGIApp

from streamserve.aio.daemon_thread import run_in_daemon_thread
from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.names import checkpoint_of
from streamserve.deploy.api_siblings import ApiSiblings
from streamserve.deploy.directory import ANNOUNCE_INTERVAL_S, Member
from streamserve.deploy.options import AppOptions
from streamserve.deploy.places import Places
from streamserve.engine.ipc.tcp import Place
from streamserve.engine.process.launch import listening_socket
from streamserve.engine.replicas.replica_set import ReplicaSet
from streamserve.engine.replicas.routing_memory import RoutingMemory
from streamserve.engine.stream import StreamLimits
from streamserve.errors import EngineDead
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.connections.listen import Listen
from streamserve.server.process.api_worker import ApiWorker, read_tokenizer
from streamserve.server.siblings.control import Method
from streamserve.server.siblings.siblings import Siblings
from streamserve.server.telemetry.metrics import Metrics
from streamserve.text.sampling_defaults import default_sampling_params

MAX_REPLICAS = 128
"""Engines that one API worker routes to: among more, choosing takes longer than a millisecond."""

logger = logging.getLogger(__name__)


class IngressWorker:
    """Takes requests once the first engine has loaded the model.

    directory  Ray Serve's handle of the `Directory`
    """

    def __init__(self, options: AppOptions, directory: Any) -> None:
        self._options = options
        self._directory = directory
        self._serving: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._replicas: ReplicaSet | None = None
        self._worker: ApiWorker | None = None
        self._siblings = ApiSiblings(self._on_call)

    @property
    def app(self) -> ASGIApp:
        """What answers requests."""
        assert self._worker is not None
        return self._worker.app

    async def start(self, id: str, host: str) -> None:
        """Wait for an engine, and take requests. Raises `ConfigError` for a model that can't be used."""
        options = self._options
        metrics = Metrics(options.server.model_names[0])
        siblings = Siblings(self._siblings.call, self._siblings.internal_socket)
        listen = Listen(log_level=options.log_level, access_log=False)
        self._worker = worker = ApiWorker(options.server, listen, metrics=metrics, siblings=siblings)
        # Its own port is for other API workers: requests come through Ray Serve.
        self._serving = asyncio.create_task(worker.serve(listening_socket(self._siblings.http_path)))
        await worker.wait_started()
        checkpoint = await run_in_daemon_thread(lambda: checkpoint_of(options.engine))
        tokenizer = await read_tokenizer(options.engine, checkpoint)
        while True:
            engines = await self._first_engines()
            places = [Place(engine.address) for engine in engines]
            self._replicas = ReplicaSet(
                places,
                RoutingMemory(MAX_REPLICAS),
                is_only_router=False,
                on_given_up=metrics.give_up,
                stream_limits=StreamLimits(stall_timeout_s=options.engine.stall_timeout_s),
            )
            try:
                await worker.connect(self._replicas, tokenizer, checkpoint.eos_token_ids, self._defaults(checkpoint))
            except EngineDead as error:
                # Another takes its place.
                logger.warning("lost an engine before requests were taken: %s", error.message)
            else:
                break
        http, control = await self._siblings.listen(host)
        member = Member(id=id, kind="api", address=http, control=control)
        kept = Places(self._replicas, engines, places, drain_s=options.drain_s)
        self._following = asyncio.create_task(self._follow(member, kept))

    async def stop(self) -> None:
        """End what still runs and close every connection."""
        if self._worker is not None:
            await self._worker.drain()
            self._worker.close()
        if self._following is not None:
            self._following.cancel()
        if tasks := [task for task in (self._following, self._serving) if task is not None]:
            await asyncio.wait(tasks)
        await self._siblings.close()
        if self._replicas is not None:
            await self._replicas.stop()

    def _defaults(self, checkpoint: Checkpoint) -> dict[str, Any]:
        defaults = default_sampling_params(checkpoint) if self._options.uses_model_defaults else {}
        return {**defaults, **self._options.sampling_overrides}

    async def _first_engines(self) -> list[Member]:
        """The engines that there are, once there is one."""
        while True:
            members: list[Member] = await self._directory.members.remote()
            if engines := [each for each in members if each.kind == "engine" and not each.is_leaving][:MAX_REPLICAS]:
                return engines
            await asyncio.sleep(ANNOUNCE_INTERVAL_S / 2)

    async def _follow(self, member: Member, places: Places) -> None:
        """Announce this worker, and keep its replicas and siblings to what the directory says."""
        while True:
            await asyncio.sleep(ANNOUNCE_INTERVAL_S)
            try:
                await self._directory.announce.remote(member)
                members = await self._directory.members.remote()
            except Exception:
                # It is being restarted: the engines that are known stay.
                logger.warning("the directory can't be reached", exc_info=True)
            else:
                await places.update(members)
                await self._siblings.update(members, member.id)

    def _on_call(self, method: Method, id: OwnedId) -> bool:
        return self._worker is not None and self._worker.service.on_call(method, id)
