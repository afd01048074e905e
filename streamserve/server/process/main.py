"""One server from start to end: open the port, wait for the engine, serve, drain, stop every process.

Runs in the process of `streamserve serve`, whose event loop is also the first API worker's. It owns the engine process and the
further workers, and it alone handles signals: the first one drains, the second ends everything at once. SIGHUP, which
comes twice when a terminal closes, only ever drains.
"""

from __future__ import annotations

import os
import signal
import socket
from functools import partial
from typing import NoReturn

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup

from streamserve.aio.daemon_thread import run_in_daemon_thread
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.start import EngineStart
from streamserve.engine.process.supervision import keep_running
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.watchdog import kill_when_hung
from streamserve.errors import StreamserveError
from streamserve.process.signals import heeded
from streamserve.server.http.listen import Listen
from streamserve.server.http.owned_id import OwnedId
from streamserve.server.process.api_worker import ApiWorker, read_tokenizer, remote_engine
from streamserve.server.process.options import ServeOptions
from streamserve.server.process.startup_log import StartupLog
from streamserve.server.process.worker_process import WorkerLaunch
from streamserve.server.process.worker_supervision import WorkerSupervision, launches_of
from streamserve.server.process.workers import END_TIMEOUT_S
from streamserve.server.siblings.control import Method
from streamserve.server.siblings.siblings import Siblings, internal_socket_path
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
        self._process: EngineProcess | None = None
        self._engine: RemoteEngine | None = None
        self._workers: WorkerSupervision | None = None
        self._loading = anyio.CancelScope()
        self._ending = anyio.Event()
        self._failure: str | None = None

    async def run(self) -> int:
        """Serve until a signal or a failure, which is logged; returns the exit status, 1 after a failure.

        Raises `ConfigError` for unusable TLS files.
        """
        memory_fd = Metrics.shared_memory(self._options.workers)
        try:
            listen = msgspec.structs.replace(self._options.listen, port=self._listening.getsockname()[1])
            first = self._first_worker(listen, memory_fd)
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._handle_signals)
                await self._serve(first, listen, memory_fd, watching)
                watching.cancel_scope.cancel()
        finally:
            self._listening.close()
            os.close(memory_fd)
            await self._stop_engine()
            if self._workers is not None:
                self._workers.kill()
        return 0 if self._failure is None else EXIT_FAILED

    def _first_worker(self, listen: Listen, memory_fd: int) -> ApiWorker:
        config, workers = self._options.server, self._options.workers
        metrics = Metrics(config.model_names[0], memory_fd=memory_fd, workers=workers)
        siblings = Siblings(self._call_workers, self._internal_socket) if workers > 1 else None
        return ApiWorker(config, listen, metrics=metrics, siblings=siblings)

    async def _call_workers(self, method: Method, id: OwnedId) -> int | None:
        return None if self._workers is None else await self._workers.call(method, id)

    def _internal_socket(self, worker: int) -> str:
        assert self._process is not None, "no response is kept before there is an engine"
        return internal_socket_path(self._process.address, worker)

    async def _serve(self, first: ApiWorker, listen: Listen, memory_fd: int, watching: TaskGroup) -> None:
        async with anyio.create_task_group() as http:
            http.start_soon(first.serve, self._listening)
            await first.wait_started()
            self._log_port(listen)
            await self._load(first, listen, memory_fd, watching)
            await self._ending.wait()
            await self._shut_down(first)
            first.close()

    def _log_port(self, listen: Listen) -> None:
        reach = ", to this machine only: --api-key or --host 0.0.0.0 opens it to others" if listen.is_local else ""
        self._log.step("port", f"{listen.url} answers /live{reach}")
        if not listen.is_local and not self._options.server.api_keys:
            self._log.note(f"warning: whoever can reach {listen.host}:{listen.port} may use this server: it has no --api-key")

    async def _load(self, first: ApiWorker, listen: Listen, memory_fd: int, watching: TaskGroup) -> None:
        """Start everything behind the open port; a failure ends the server."""
        with self._loading:
            try:
                launch = await self._find_engine(listen, memory_fd)
                self._start_workers(launch, first, watching)
                await self._connect(first, launch, watching)
            except StreamserveError as error:
                self._end(error.message)
                return
            self._log.ready(listen.url)

    async def _find_engine(self, listen: Listen, memory_fd: int) -> WorkerLaunch:
        """Wait until the model is found and the engine process runs; returns the launch parameters of further workers."""
        options = self._options
        checkpoint, config, process = await run_in_daemon_thread(self._start.result)
        self._process = process
        self._log.step("model", f"{checkpoint.source} ({checkpoint.format}, {checkpoint.path})")
        defaults = default_sampling_params(checkpoint) if options.uses_model_defaults else {}
        return WorkerLaunch(
            worker=0,
            workers=options.workers,
            control_fd=-1,
            metrics_fd=memory_fd,
            engine_address=process.address,
            engine_config=config,
            checkpoint=checkpoint,
            server_config=options.server,
            sampling_defaults={**defaults, **options.sampling_overrides},
            listen=listen,
        )

    def _start_workers(self, launch: WorkerLaunch, first: ApiWorker, watching: TaskGroup) -> None:
        if launch.workers > 1:
            self._workers = WorkerSupervision(
                launches_of(launch), on_call=first.service.on_call, on_restart=self._log_worker_restart
            )
            watching.start_soon(self._watch_workers, self._workers)

    async def _connect(self, first: ApiWorker, launch: WorkerLaunch, watching: TaskGroup) -> None:
        tokenizer = await read_tokenizer(launch.engine_config, launch.checkpoint)
        self._log.step("tokenizer", f"{tokenizer.vocab_size} tokens")
        self._engine = remote_engine(launch.engine_address, launch.engine_config, launch.server_config, first.service.metrics)
        info = await first.connect(self._engine, tokenizer, launch.checkpoint.eos_token_ids, launch.sampling_defaults)
        assert self._process is not None
        watching.start_soon(self._watch_engine, self._engine, self._process, first.service.metrics)
        watching.start_soon(self._watch_for_hangs, self._engine, self._process)
        self._log_engine(info)
        if (token := first.service.frontend.unembedded_template_token()) is not None:
            self._log.note(
                f"warning: every chat will be refused: the chat template writes {token!r}, a token that this model has no "
                "embedding of; --chat-template replaces it"
            )
        if self._workers is not None:
            await first.open_internal_socket(internal_socket_path(launch.engine_address, launch.worker))
            await self._workers.wait_ready()

    def _log_engine(self, info: EngineInfo) -> None:
        parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in info.startup_s.items())
        layers = " by transformers' layers" if info.model_impl == "transformers" else ", compiled" if info.compiled else ""
        engine = f"{info.architecture}{layers}, {info.dtype} on {info.device}"
        self._log.step("engine", f"{engine} ({parts})" if parts else engine)
        self._log.step(
            "KV cache",
            f"{info.kv_capacity_tokens} tokens in {info.num_blocks} blocks; "
            f"contexts up to {info.max_model_len} tokens, {info.max_num_seqs} sequences at a time",
        )
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
                if self._ending.is_set() and number != signal.SIGHUP:
                    self._abandon(128 + number)
                self._end()

    def _abandon(self, status: int) -> NoReturn:
        """Kill the other processes and exit at once."""
        if self._workers is not None:
            self._workers.kill()
        if self._process is not None:
            self._process.stop(timeout_s=0)
        os._exit(status)

    async def _watch_engine(self, engine: RemoteEngine, process: EngineProcess, metrics: Metrics) -> None:
        restarts = self._options.server.max_engine_restarts
        status = await keep_running(
            process,
            max_restarts=restarts,
            on_restart=partial(self._log_restart, metrics),
            num_explained=lambda: metrics.num_engine_ends_explained,
        )
        # Its streams have their endings by then.
        await engine.wait_ended()
        self._end(f"the engine process ended with status {status}; its log says why, and the server must be started again")

    async def _watch_for_hangs(self, engine: RemoteEngine, process: EngineProcess) -> None:
        timeout_s = self._options.server.engine_hang_timeout_s
        await kill_when_hung(engine, process, step_timeout_s=timeout_s, on_kill=self._log_hang)

    def _log_hang(self, reason: str) -> None:
        self._log.note(f"The engine process hangs: {reason}; killing it")

    def _log_restart(self, metrics: Metrics, status: int, restarts: int) -> None:
        most = self._options.server.max_engine_restarts
        metrics.engine_restarts.add()
        self._log.note(
            f"The engine process ended with status {status}; starting it again ({restarts} of {most} times in ten minutes): "
            "open streams wait for it"
        )

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


def _requests(count: int) -> str:
    return "1 request has" if count == 1 else f"{count} requests have"
