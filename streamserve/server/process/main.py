"""One server from start to end: open the port, wait for the engine, serve, drain, stop every process.

Runs in the process of `streamserve serve`, whose event loop is also the first API worker's. It owns the engine processes and
the further workers, and it alone handles signals: the first one drains, the second ends everything at once. SIGHUP reloads,
unless it says that the terminal has closed; then it drains, and only that, since it comes twice. Of several workers a reload
replaces the first, too: this process then serves nothing new, and goes on to own the others.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from streamserve.aio.daemon_thread import run_in_daemon_thread
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.start import EngineStart, Started
from streamserve.engine.replicas.routing_memory import RoutingMemory
from streamserve.errors import ConfigError, StreamserveError
from streamserve.process.signals import Terminal, heeded
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.connections.listen import Listen
from streamserve.server.process.api_worker import ApiWorker, read_tokenizer
from streamserve.server.process.engine_supervision import EngineSupervision
from streamserve.server.process.options import ServeOptions
from streamserve.server.process.startup_log import StartupLog
from streamserve.server.process.worker_launch import ServedEngine, WorkerLaunch
from streamserve.server.process.worker_supervision import WorkerSupervision, launches_of, processes_of
from streamserve.server.process.workers import END_TIMEOUT_S
from streamserve.server.siblings.control import Method
from streamserve.server.siblings.siblings import Siblings
from streamserve.server.telemetry.metrics import Metrics
from streamserve.text.sampling_defaults import default_sampling_params
from streamserve.types import EngineInfo

EXIT_FAILED = 1


class Server:
    """One server from its start to its end; `run` once.

    listening  bound to the options' address
    start      of the engine that it serves

    Both are closed with the server.
    """

    def __init__(self, options: ServeOptions, listening: socket.socket, start: EngineStart, startup_log: StartupLog) -> None:
        self._options = options
        self._listening = listening
        self._start = start
        self._log = startup_log
        self._launch: WorkerLaunch | None = None
        self._engine: ServedEngine | None = None
        self._workers: WorkerSupervision | None = None
        self._loading = anyio.CancelScope()
        self._ending = anyio.Event()
        self._terminal = Terminal()
        self._reload_requested = anyio.Event()
        self._is_loaded = False
        self._failure: str | None = None

    async def run(self) -> int:
        """Serve until a signal or a failure, which is logged; returns the exit status, 1 after a failure.

        Raises `ConfigError` for unusable TLS files.
        """
        memory = _SharedMemory.create(self._options)
        try:
            listen = msgspec.structs.replace(self._options.listen, port=self._listening.getsockname()[1])
            first = self._first_worker(listen, memory)
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._handle_signals)
                watching.start_soon(self._reload_on_request, first)
                await self._serve(first, listen, memory, watching)
                watching.cancel_scope.cancel()
        finally:
            self._listening.close()
            memory.close()
            await self._stop_engine()
            if self._workers is not None:
                self._workers.kill()
        return 0 if self._failure is None else EXIT_FAILED

    def _first_worker(self, listen: Listen, memory: _SharedMemory) -> ApiWorker:
        config, workers, engines = self._options.server, self._options.workers, self._options.engine.data_parallel_size
        metrics = Metrics(config.model_names[0], memory_fd=memory.metrics_fd, workers=processes_of(workers), engines=engines)
        siblings = Siblings(self._call_workers, self._internal_socket) if workers > 1 else None
        return ApiWorker(config, listen, metrics=metrics, siblings=siblings)

    async def _call_workers(self, method: Method, id: OwnedId) -> int | None:
        return None if self._workers is None else await self._workers.call(method, id)

    def _internal_socket(self, worker: int) -> str:
        assert self._launch is not None, "no response is kept before there is an engine"
        return self._launch.internal_socket(worker)

    async def _serve(self, first: ApiWorker, listen: Listen, memory: _SharedMemory, watching: TaskGroup) -> None:
        async with anyio.create_task_group() as http:
            http.start_soon(first.serve, self._listening)
            await first.wait_started()
            self._log_port(listen)
            await self._load(first, listen, memory, watching)
            await self._ending.wait()
            await self._shut_down(first)
            first.close()

    def _log_port(self, listen: Listen) -> None:
        reach = ", to this machine only: --api-key or --host 0.0.0.0 opens it to others" if listen.is_local else ""
        self._log.step("port", f"{listen.url} answers /live{reach}")
        if not listen.is_local and not self._options.server.keys:
            self._log.note(f"warning: whoever can reach {listen.host}:{listen.port} may use this server: it has no --api-key")

    async def _load(self, first: ApiWorker, listen: Listen, memory: _SharedMemory, watching: TaskGroup) -> None:
        """Start everything behind the open port; a failure ends the server."""
        with self._loading:
            try:
                started = await run_in_daemon_thread(self._start.result)
                self._launch = launch = self._launch_of(started, listen, memory)
                self._start_workers(launch, first, watching)
                await self._connect(first, launch, started.processes, watching)
            except StreamserveError as error:
                self._end(error.message)
                return
            self._is_loaded = True
            self._log.ready(listen.url)

    def _launch_of(self, started: Started, listen: Listen, memory: _SharedMemory) -> WorkerLaunch:
        """The launch parameters of the first worker; those of further ones differ in what is theirs."""
        options, checkpoint = self._options, started.checkpoint
        self._log.step("model", f"{checkpoint.source} ({checkpoint.format}, {checkpoint.path})")
        defaults = default_sampling_params(checkpoint) if options.uses_model_defaults else {}
        return WorkerLaunch(
            worker=0,
            processes=processes_of(options.workers),
            metrics_fd=memory.metrics_fd,
            routing_fd=memory.routing_fd,
            engine_addresses=[process.address for process in started.processes],
            engine_config=started.config,
            checkpoint=checkpoint,
            server_config=options.server,
            sampling_defaults={**defaults, **options.sampling_overrides},
            listen=listen,
        )

    def _start_workers(self, launch: WorkerLaunch, first: ApiWorker, watching: TaskGroup) -> None:
        if self._options.workers > 1:
            first_replaced = anyio.Event()
            self._workers = WorkerSupervision(
                launches_of(launch, self._options.workers),
                self._listening,
                on_call=first.service.on_call,
                on_restart=self._log_worker_restart,
                accepting_from=first.accepting_from,
                on_first_replaced=first_replaced.set,
            )
            watching.start_soon(_retire, first, first_replaced)
            watching.start_soon(self._watch_workers, self._workers)

    async def _connect(
        self, first: ApiWorker, launch: WorkerLaunch, processes: Sequence[EngineProcess], watching: TaskGroup
    ) -> None:
        tokenizer = await read_tokenizer(launch.engine_config, launch.checkpoint)
        self._log.step("tokenizer", f"{tokenizer.vocab_size} tokens")
        self._engine = engine = launch.engine(first.service.metrics)
        await first.connect(engine, tokenizer, launch.checkpoint.eos_token_ids, launch.sampling_defaults)
        supervision = EngineSupervision(
            processes, engine.replicas, config=launch.server_config, metrics=first.service.metrics, log=self._log
        )
        watching.start_soon(self._watch_engines, supervision)
        self._log_engines([replica.info for replica in engine.replicas])
        if (token := first.service.frontend.unembedded_template_token()) is not None:
            self._log.note(
                f"warning: every chat will be refused: the chat template writes {token!r}, a token that this model has no "
                "embedding of; --chat-template replaces it"
            )
        if self._workers is not None:
            await first.open_internal_socket(launch.internal_socket(launch.worker))
            await self._workers.wait_ready()

    def _log_engines(self, infos: Sequence[EngineInfo]) -> None:
        for number, info in enumerate(infos):
            suffix = f" {number}" if len(infos) > 1 else ""
            parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in info.startup_s.items())
            layers = " by transformers' layers" if info.model_impl == "transformers" else ", compiled" if info.compiled else ""
            engine = f"{info.architecture}{layers}, {info.dtype} on {info.device}"
            self._log.step(f"engine{suffix}", f"{engine} ({parts})" if parts else engine)
            kept_as = "" if info.kv_cache_dtype == info.dtype else f" of {info.kv_cache_dtype}"
            self._log.step(
                "KV cache",
                f"{info.kv_capacity_tokens} tokens{kept_as} in {info.num_blocks} blocks; "
                f"contexts up to {info.max_model_len} tokens, {info.max_num_seqs} sequences at a time",
            )
        info = infos[0]
        if info.model_limit is not None:
            reaches = f"The model reaches {info.model_limit} tokens (--max-model-len {info.model_limit})"
            self._log.note(f"{reaches}, at some cost in short texts: above {info.max_model_len} it rotates all otherwise")
        if info.compiled is False and not self._options.engine.enforce_eager:
            self._log.note(f"To write faster on this CPU, run once: streamserve compile {info.model}")

    async def _shut_down(self, first: ApiWorker) -> None:
        if self._failure is not None:
            self._log.error(self._failure)
            await first.fail()
            return
        running = first.service.metrics.num_requests
        if running:
            timeout_s = self._options.server.shutdown_timeout_s
            self._log.note(f"Stopping: {_requests(running)} {timeout_s:g} s to finish; a second signal ends them now")
        if self._workers is not None:
            self._workers.drain()
        await first.drain()
        if self._workers is not None:
            with anyio.move_on_after(self._options.server.shutdown_timeout_s + END_TIMEOUT_S):
                await self._workers.wait_ended()

    def _end(self, failure: str | None = None) -> None:
        """Begin to shut down; the first reason is reported."""
        if not self._ending.is_set():
            self._failure = failure
            self._ending.set()
            self._loading.cancel()

    async def _handle_signals(self) -> None:
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, *heeded(signal.SIGHUP)) as signals:
            async for number in signals:
                if number == signal.SIGHUP and self._terminal.is_there():
                    self._reload_requested.set()
                    continue
                if self._ending.is_set() and number != signal.SIGHUP:
                    self._abandon(128 + number)
                self._end()

    async def _reload_on_request(self, first: ApiWorker) -> None:
        """At each request read the keys and the TLS files again and replace the workers; several at a time are one."""
        while True:
            await self._reload_requested.wait()
            self._reload_requested = anyio.Event()
            if self._is_loaded and not self._ending.is_set():
                await self._reload(first)

    async def _reload(self, first: ApiWorker) -> None:
        try:
            config = await first.reload_keys()
            first.reload_certificates()
        except ConfigError as error:
            self._log.note(f"Nothing is reloaded: {error.message}")
            return
        what = "the TLS files" if config.keys_file is None else "the keys and the TLS files"
        if self._workers is None:
            self._log.note(f"Reloaded {what}")
            return
        self._workers.reconfigure(config)
        if await self._workers.replace_all():
            self._log.note(f"Reloaded {what} and replaced the API workers; those before finish their streams")
        else:
            self._log.note("An API worker could not be replaced, its log says why: the one before goes on")

    def _abandon(self, status: int) -> NoReturn:
        """Kill the other processes and exit at once."""
        if self._workers is not None:
            self._workers.kill()
        self._start.stop(timeout_s=0)
        os._exit(status)

    async def _watch_engines(self, supervision: EngineSupervision) -> None:
        self._end(await supervision.run())

    async def _watch_workers(self, workers: WorkerSupervision) -> None:
        failed = await workers.run()
        if failed is not None:
            self._end(f"API worker {failed} ends whenever it is started; its log says why")

    def _log_worker_restart(self, worker: int, status: int) -> None:
        self._log.note(f"API worker {worker} ended with status {status}; starting it again: its streams are lost, no others")

    async def _stop_engine(self) -> None:
        with anyio.CancelScope(shield=True):
            if self._engine is not None:
                with anyio.move_on_after(END_TIMEOUT_S):
                    await self._engine.stop()
            await anyio.to_thread.run_sync(self._start.stop)


async def _retire(first: ApiWorker, replaced: anyio.Event) -> None:
    await replaced.wait()
    await first.retire()


class _SharedMemory(NamedTuple):
    """Descriptors of the memory that all API workers share."""

    metrics_fd: int
    routing_fd: int

    @classmethod
    def create(cls, options: ServeOptions) -> _SharedMemory:
        workers, engines = processes_of(options.workers), options.engine.data_parallel_size
        return cls(Metrics.shared_memory(workers, engines), RoutingMemory.create_shared(engines, workers))

    def close(self) -> None:
        os.close(self.metrics_fd)
        os.close(self.routing_fd)


def _requests(count: int) -> str:
    return "1 request has" if count == 1 else f"{count} requests have"
