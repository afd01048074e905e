"""`streamserve serve MODEL`: options in, one server out.

Reads the command line, binds the port and starts the engine before anything slow is imported: the engine loads while this
process imports the server, which `streamserve.server.process.main` runs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import sys
from functools import partial
from typing import Any

import anyio
import click

from streamserve.commands.answer_options import answer_options, answer_settings, sampling_defaults
from streamserve.commands.api_keys import API_KEY_VARIABLES
from streamserve.commands.engine_options import AMOUNT, engine_config, engine_options
from streamserve.commands.vllm_command import VllmCommand, option
from streamserve.engine.process.start import EngineStart
from streamserve.errors import ConfigError
from streamserve.process.limits import raise_descriptor_limit
from streamserve.process.signals import MEANINGLESS, exiting_on, ignore
from streamserve.process.switch_interval import shorten_switch_interval
from streamserve.server.config import CorsConfig, ServerConfig
from streamserve.server.http.access.keys_file import read_keys_file
from streamserve.server.http.connections.listen import Listen, bind
from streamserve.server.process.logs import configure
from streamserve.server.process.options import ServeOptions
from streamserve.server.process.startup_log import StartupLog

ABOVE_ZERO = click.FloatRange(min=0, min_open=True)
NOT_NEGATIVE = click.FloatRange(min=0)
MAX_WORKERS = 64

_LISTS = ("--served-model-name", "--api-key")
_LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


_server = partial(option, "Server")
_limits = partial(option, "Limits")
_log = partial(option, "Log")
_browsers = partial(option, "CORS and TLS")


class JsonList(click.ParamType[tuple[str, ...]]):
    """vLLM's lists on the command line: a JSON array of strings."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        try:
            items = json.loads(value)
        except ValueError:
            items = None
        if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
            self.fail(f"{value!r} is no JSON array of strings such as '[\"*\"]'", param, ctx)
        return tuple(items)


@click.command(cls=VllmCommand, lists=_LISTS, has_all_options=True)
@click.argument("model", required=False)
@_server("--config", expose_value=False, help="YAML file of options, as in port: 8000; the command line wins.")
@_server("--host", shown_default="127.0.0.1; 0.0.0.0 with a key", help="Address to listen on; 0.0.0.0 is all of them.")
@_server("--port", type=int, default=8000, help="Port to listen on; 0 takes a free one.")
@_server("--api-key", multiple=True, show_default=False, help="Key to ask for; may be repeated. Also from VLLM_API_KEY.")
@_server("--api-keys-file", help="YAML file of keys by their hashes, with limits; read again on SIGHUP.")
@_server("--prefix-cache-per-key", is_flag=True, help="Share cached prefixes only among requests of one key.")
@_server("--protect-metrics", is_flag=True, help="Ask for a key at /metrics, too.")
@_server("--root-path", default="", help="Path under which a proxy shows this server.")
@_server(
    "-asc",
    "--api-server-count",
    type=click.IntRange(1, MAX_WORKERS),
    shown_default="--data-parallel-size",
    help="API processes.",
)
@_server("--max-engine-restarts", type=click.IntRange(0), default=3, help="Times within ten minutes to restart the engine.")
@_server("--engine-hang-timeout", type=ABOVE_ZERO, default=300.0, help="Seconds a step may take; then the engine is restarted.")
@engine_options
@answer_options
@_limits("--shutdown-timeout", type=NOT_NEGATIVE, default=30.0, help="Seconds running streams get at the end.")
@_limits("--keepalive", type=ABOVE_ZERO, default=15.0, help="Seconds of silence before a blank line.")
@_limits("--receive-timeout", type=ABOVE_ZERO, default=20.0, help="Seconds a request may stall.")
@_limits("--send-timeout", type=ABOVE_ZERO, default=60.0, help="Seconds a client may read nothing.")
@_limits("--max-request-bytes", type=AMOUNT, default="16M", help="Largest request body.")
@_limits("--max-sockets", type=click.IntRange(1), default=1024, help="WebSockets open at a time, per API process.")
@_limits("--max-streams-per-socket", type=click.IntRange(1), default=64, help="Streams on a WebSocket at a time.")
@_limits("--socket-idle-timeout", type=ABOVE_ZERO, default=600.0, help="Seconds a WebSocket may be idle.")
@_limits("--resume-timeout", type=NOT_NEGATIVE, default=60.0, help="Seconds a dropped stream can be resumed.")
@_limits("--response-ttl", type=NOT_NEGATIVE, default=3600.0, help="Seconds a stored response is kept.")
@_log("--uvicorn-log-level", type=click.Choice(_LOG_LEVELS), default="info", help="What is logged.")
@_log("--disable-uvicorn-access-log", is_flag=True, help="No line per request.")
@_log("--enable-log-requests", is_flag=True, help="Log the parameters of each request; prompts are never logged.")
@_log("--otlp-traces-endpoint", help="URL to send OpenTelemetry traces to, over OTLP/HTTP.")
@_browsers("--allow-credentials", is_flag=True, help="CORS: allow cookies and the like.")
@_browsers(
    "--allowed-origins",
    type=JsonList(),
    shown_default='none but its own; ["*"] with a key',
    help="JSON array of origins whose pages may use the server.",
)
@_browsers("--allowed-methods", type=JsonList(), default=("*",), help="CORS: JSON array of methods.")
@_browsers("--allowed-headers", type=JsonList(), default=("*",), help="CORS: JSON array of headers.")
@_browsers("--ssl-keyfile", help="TLS private key.")
@_browsers("--ssl-certfile", help="TLS certificate.")
@_browsers("--ssl-ca-certs", help="CA certificates that clients are checked against.")
@_browsers("--ssl-cert-reqs", type=int, default=int(ssl.CERT_NONE), help="Whether clients need a certificate (ssl.CERT_*).")
def serve(model: str | None, **values: Any) -> int:
    """Serve MODEL over HTTP with OpenAI's API, under the flags of `vllm serve`."""
    options = serve_options(model, values)
    configure(options.listen.log_level)
    raise_descriptor_limit()
    shorten_switch_interval()
    ignore(*MEANINGLESS)
    startup_log = StartupLog()
    # The port first, which may be in use. Until the server handles signals itself, one unwinds this block.
    with bind(options.listen) as listening, exiting_on(signal.SIGTERM, signal.SIGHUP):
        start = EngineStart(options.engine)
        try:
            return _serve(options, listening, start, startup_log)
        finally:
            start.stop()


def _serve(options: ServeOptions, listening: socket.socket, start: EngineStart, startup_log: StartupLog) -> int:
    # Here and not at the top: the engine is loading already.
    from streamserve.server.process.main import Server

    async def run() -> int:
        return await Server(options, listening, start, startup_log).run()

    return anyio.run(run, backend_options={"use_uvloop": sys.platform != "win32"})


def serve_options(model: str | None, values: dict[str, Any]) -> ServeOptions:
    """The options as configurations. Raises `ConfigError` for options that don't fit together."""
    if values["otlp_traces_endpoint"] is not None:
        # Here and not at the top: it loads the web framework.
        from streamserve.server.telemetry.tracing import require_installed

        require_installed()
    _check_tls(values)
    seed = values["seed"]
    engine = engine_config(model, values)
    workers = values["api_server_count"] or min(engine.data_parallel_size, MAX_WORKERS)
    overrides, uses_defaults = sampling_defaults(values)
    api_keys, keys_file = _api_keys(values), values["api_keys_file"]
    file_keys = [] if keys_file is None else read_keys_file(keys_file)
    has_keys = bool(api_keys or file_keys)
    server = ServerConfig(
        **answer_settings(values, engine),
        **_server_settings(values),
        api_keys=api_keys,
        keys_file=keys_file,
        file_keys=file_keys,
        seed=seed,
        cors=_cors(values, has_keys=has_keys),
    )
    return ServeOptions(
        engine=engine,
        server=server,
        listen=_listen(values, has_keys=has_keys, shares_port=workers > 1),
        workers=workers,
        uses_model_defaults=uses_defaults,
        sampling_overrides=overrides,
    )


def _server_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Those that are one option each, by their names in `ServerConfig`."""
    return {
        "prefix_cache_per_key": values["prefix_cache_per_key"],
        "protects_metrics": values["protect_metrics"],
        "root_path": values["root_path"],
        "max_body_bytes": values["max_request_bytes"],
        "keepalive_s": values["keepalive"],
        "receive_timeout_s": values["receive_timeout"],
        "send_timeout_s": values["send_timeout"],
        "shutdown_timeout_s": values["shutdown_timeout"],
        "max_engine_restarts": values["max_engine_restarts"],
        "engine_hang_timeout_s": values["engine_hang_timeout"],
        "max_sockets": values["max_sockets"],
        "max_streams_per_socket": values["max_streams_per_socket"],
        "socket_idle_s": values["socket_idle_timeout"],
        "resume_s": values["resume_timeout"],
        "response_ttl_s": values["response_ttl"],
        "log_requests": values["enable_log_requests"],
        "otlp_traces_endpoint": values["otlp_traces_endpoint"],
    }


def _cors(values: dict[str, Any], *, has_keys: bool) -> CorsConfig:
    origins = values["allowed_origins"]
    return CorsConfig(
        # Whoever has no key is kept out by where a request comes from.
        origins=origins if origins is not None else ("*",) if has_keys else (),
        methods=values["allowed_methods"],
        headers=values["allowed_headers"],
        allow_credentials=values["allow_credentials"],
    )


def _listen(values: dict[str, Any], *, has_keys: bool, shares_port: bool) -> Listen:
    return Listen(
        host=values["host"] or ("0.0.0.0" if has_keys else "127.0.0.1"),
        port=values["port"],
        root_path=values["root_path"],
        log_level=values["uvicorn_log_level"],
        access_log=not values["disable_uvicorn_access_log"],
        shares_port=shares_port,
        ssl_keyfile=values["ssl_keyfile"],
        ssl_certfile=values["ssl_certfile"],
        ssl_ca_certs=values["ssl_ca_certs"],
        ssl_cert_reqs=values["ssl_cert_reqs"],
    )


def _check_tls(values: dict[str, Any]) -> None:
    if values["ssl_certfile"] is None:
        for name in ("ssl_keyfile", "ssl_ca_certs", "ssl_cert_reqs"):
            if values[name]:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {values[name]}: needs --ssl-certfile, the server's own certificate"
                )


def _api_keys(values: dict[str, Any]) -> list[str]:
    """Keys from the options, else from the environment, where vLLM's counts, too."""
    keys = list(values["api_key"]) or [key for name in API_KEY_VARIABLES if (key := os.environ.get(name))][:1]
    if not all(keys):
        raise ConfigError("--api-key: a key can't be empty")
    return keys
