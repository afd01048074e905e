"""What an application is made of: the options of `streamserve serve` that mean something where Ray Serve listens and scales.

Pure. Crosses to the replicas as bytes of JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from streamserve.commands.serve import serve, serve_options
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.server.config import ServerConfig
from streamserve.server.process.options import ServeOptions

ELSEWHERE = {
    "host": "http_options.host of Ray Serve's configuration",
    "port": "http_options.port of Ray Serve's configuration",
    "root_path": "route_prefix of the application",
    "ssl_keyfile": "http_options.ssl_keyfile of Ray Serve's configuration",
    "ssl_certfile": "http_options.ssl_certfile of Ray Serve's configuration",
    "ssl_ca_certs": "http_options.ssl_ca_certs of Ray Serve's configuration",
    "max_engine_restarts": "nothing: Ray Serve replaces replicas for as long as it runs",
    "config": "args of the application",
}
"""Options that Ray Serve has itself, or has no use for, and what to set instead."""


class Scale(NamedTuple):
    """How many processes there are, unless Ray Serve's configuration says otherwise; no process knows.

    num_engines  --data-parallel-size
    num_api      --api-server-count; 1 by default, since each of them routes by what it has sent itself
    """

    num_engines: int
    num_api: int


class AppOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of one application know: those that were started under others are replaced.

    engine              of each replica
    drain_s             seconds that the streams of a replica get to finish before others continue them: --shutdown-timeout
    uses_model_defaults, sampling_overrides  as in `ServeOptions`
    """

    engine: EngineConfig
    server: ServerConfig
    drain_s: float
    log_level: str
    uses_model_defaults: bool
    sampling_overrides: dict[str, Any]


def app_options(args: Mapping[str, Any]) -> tuple[AppOptions, Scale]:
    """The options under the names of `streamserve serve`'s, as a configuration file has them.

    Raises `ConfigError` for those that are unknown, don't fit together, or belong elsewhere.
    """
    for name in args:
        if (instead := ELSEWHERE.get(name.replace("-", "_"))) is not None:
            raise ConfigError(f"{name} in args: an application has no such option; set {instead}")
    values = serve.values_of(args, "args")
    num_api = values["api_server_count"] or 1
    options: ServeOptions = serve_options(values.pop("model"), values)
    app = AppOptions(
        engine=msgspec.structs.replace(options.engine, data_parallel_size=1, data_parallel_size_local=None),
        server=options.server,
        drain_s=options.server.shutdown_timeout_s,
        log_level=options.listen.log_level,
        uses_model_defaults=options.uses_model_defaults,
        sampling_overrides=options.sampling_overrides,
    )
    return app, Scale(options.engine.data_parallel_size, num_api)
