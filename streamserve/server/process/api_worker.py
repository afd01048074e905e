"""One API worker: an HTTP server, a connection to the engine, and the service between them.

Runs on one event loop of one process: the first worker in the process of `streamserve serve`, further ones in processes of
their own (`worker_process`). It answers /live at once and takes requests once the engine is ready.
"""

from __future__ import annotations

import gc
import random
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from streamserve.aio.daemon_thread import run_in_daemon_thread
from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.engine.base import Engine
from streamserve.frontend import Frontend
from streamserve.process.limits import descriptor_limit
from streamserve.server.app import create_app
from streamserve.server.config import ServerConfig
from streamserve.server.http.access.keys_file import read_keys_file
from streamserve.server.http.connections.connection_limit import ConnectionLimit, connections_for
from streamserve.server.http.connections.listen import Listen
from streamserve.server.http.connections.server import http_server
from streamserve.server.process.logs import PROBES
from streamserve.server.service import Service
from streamserve.server.siblings.siblings import Siblings
from streamserve.server.telemetry.metrics import Metrics
from streamserve.server.telemetry.tracing import exporting_to
from streamserve.server.ws.protocol import SocketProtocol
from streamserve.text.preparation import MAX_SEED
from streamserve.text.tokenizers.tokenizer import Tokenizer, tokenizer_of
from streamserve.types import EngineInfo

FLUSH_TIMEOUT_S = 5.0
"""Seconds that the last bytes of a response get to reach its client before its connection is closed."""


RETIRE_INTERVAL_S = 0.25
"""Seconds between two looks at whether a worker that was replaced has finished."""


class ApiWorker:
    """Serves `listen` on a bound socket until `close`.

    app  what answers requests, for whoever receives them otherwise

    Raises `ConfigError` for unusable TLS files, and without a package that the configuration needs.
    """

    def __init__(
        self,
        config: ServerConfig,
        listen: Listen,
        *,
        metrics: Metrics,
        siblings: Siblings | None = None,
    ) -> None:
        endpoint = config.otlp_traces_endpoint
        self._tracer = None if endpoint is None else exporting_to(endpoint)
        self.service = Service(config, metrics=metrics, tracer=self._tracer, siblings=siblings)
        self.app = create_app(self.service)
        self._http = http_server(
            self.app,
            listen,
            websocket_protocol=partial(SocketProtocol, memory=self.service.large_work.memory),
            shutdown_timeout_s=FLUSH_TIMEOUT_S,
            max_message_bytes=config.max_body_bytes,
            pong_timeout_s=config.send_timeout_s + FLUSH_TIMEOUT_S,
            receive_timeout_s=config.receive_timeout_s,
            connection_limit=_connection_limit(listen.root_path),
            on_buffered=metrics.client_buffer_bytes.set,
        )

    async def serve(self, listening: socket.socket) -> None:
        """Serve HTTP until `close`."""
        async with self.service.delivery.running():
            await self._http.serve(sockets=[listening])
        if self._tracer is not None:
            await anyio.to_thread.run_sync(self._tracer.close)

    async def wait_started(self) -> None:
        """Return once connections are accepted."""
        await self._http.listening.wait()

    async def open_internal_socket(self, path: str) -> None:
        """Serve the other API workers on a socket at `path`, too, for as long as `serve` runs."""
        await self._http.open_internal_socket(path)

    async def connect(
        self, engine: Engine, tokenizer: Tokenizer, eos_token_ids: Sequence[int], defaults: Mapping[str, Any]
    ) -> EngineInfo:
        """Wait for the engine, then take requests; `defaults` as in `Service.attach`. Raises the error of its start."""
        info = await engine.start()
        config = self.service.config
        frontend = Frontend(
            engine,
            tokenizer,
            eos_token_ids=eos_token_ids,
            max_logprobs=config.max_logprobs,
            chat_template=config.chat_template,
            allow_special_tokens_in_messages=config.allow_special_tokens_in_messages,
            next_seed=None if config.seed is None else partial(random.Random(config.seed).randrange, MAX_SEED),
        )
        self.service.attach(frontend, defaults)
        # What loading left is here to stay: the collector need not walk it again between two events.
        gc.collect()
        gc.freeze()
        return info

    async def drain(self) -> None:
        """Take no new requests and let running ones finish, for as long as the configuration allows."""
        await self.service.drain(self.service.config.shutdown_timeout_s)

    async def retire(self) -> None:
        """Accept no more connections, and return once those there are have ended, and what clients may resume with them."""
        self._http.retire()
        self.service.retire()
        # What is kept for clients expires without an event.
        while self._http.is_connected or self.service.is_needed:  # noqa: ASYNC110
            await anyio.sleep(RETIRE_INTERVAL_S)

    @asynccontextmanager
    async def accepting_from(self, listening: socket.socket) -> AsyncIterator[None]:
        """Accept another worker's connections, too, while the block runs."""
        async with self._http.accepting_from(listening):
            yield

    async def reload_keys(self) -> ServerConfig:
        """Read the keys file again, where there is one; returns the configuration with its keys.

        Raises `ConfigError` for a file that can't be read, in which case nothing changes.
        """
        config = self.service.config
        if config.keys_file is not None:
            file_keys = await run_in_daemon_thread(partial(read_keys_file, config.keys_file))
            config = msgspec.structs.replace(config, file_keys=file_keys)
            self.service.api_keys.replace(config.keys)
        return config

    def reload_certificates(self) -> None:
        """Read the TLS files again, for connections from now on. Raises `ConfigError` and changes nothing for unusable ones."""
        self._http.reload_certificates()

    async def fail(self) -> None:
        """The engine is gone and its streams have ended: wait until their last bytes are sent, at most `FLUSH_TIMEOUT_S`."""
        await self.service.die(FLUSH_TIMEOUT_S)

    def close(self) -> None:
        """Stop accepting; `serve` returns once the connections are closed."""
        self._http.should_exit = True


def _connection_limit(root_path: str) -> ConnectionLimit:
    prefix = root_path.rstrip("/")
    always = {f"{start}{path}" for start in ("", prefix) for path in PROBES}
    return ConnectionLimit(connections_for(descriptor_limit()), always=always)


async def read_tokenizer(config: EngineConfig, checkpoint: Checkpoint) -> Tokenizer:
    """The model's tokenizer, loaded on a thread. Raises `ConfigError`."""
    return await run_in_daemon_thread(partial(tokenizer_of, config, checkpoint))
