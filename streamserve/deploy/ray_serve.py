"""The application for Ray Serve: `serve run streamserve.deploy.ray_serve:app model=MODEL`, or `import_path` in a configuration.

Three deployments: `Engine`, the replicas of the model; `Ingress`, the API workers, to which Ray Serve's proxies pass HTTP and
WebSockets; and `Directory`, through which they find each other. Ray Serve places, watches, scales and replaces them, and
carries requests to the API workers; from there on prompts and tokens travel over connections of ours. Ray is imported when an
application is built.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from litestar.types import ASGIApp

from streamserve.deploy.directory import Directory
from streamserve.deploy.engine_replica import HANDOVER_S, EngineReplica
from streamserve.deploy.ingress import IngressWorker
from streamserve.deploy.options import AppOptions, Scale, app_options
from streamserve.errors import ConfigError
from streamserve.process.child import decode_with_paths, encode_with_paths

MAX_ONGOING_REQUESTS = 4096
"""Requests of one API worker at a time; further ones wait at Ray Serve's proxies."""

HEALTH_CHECK_S = 2.0

TARGET_SEQUENCES = 64.0
"""Sequences of a replica that autoscaling aims at, where a configuration does not say otherwise."""

POLICY = "streamserve.deploy.autoscaling:by_queue_depth"


def app(args: dict[str, Any]) -> Any:
    """Build the application.

    args  options of `streamserve serve`, by their names, and `autoscaling`: fields of Ray Serve's `AutoscalingConfig` for the
          replicas of the model; `docs/SCALING.md` says which options Ray Serve has itself

    Raises `ConfigError` without Ray Serve, and for options that are unknown, don't fit together or belong elsewhere.
    """
    serve = _ray_serve()
    args = dict(args)
    autoscaling = args.pop("autoscaling", None)
    options, scale = app_options(args)
    line = encode_with_paths(options)
    directory = serve.deployment(
        name="Directory",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False},
    )(Directory).bind()
    engine = serve.deployment(
        name="Engine",
        ray_actor_options=_engine_resources(options),
        health_check_period_s=HEALTH_CHECK_S,
        graceful_shutdown_timeout_s=options.drain_s + 2 * HANDOVER_S,
        **_engine_scale(scale, autoscaling),
    )(Engine)
    ingress = serve.deployment(
        name="Ingress",
        num_replicas=scale.num_api,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=MAX_ONGOING_REQUESTS,
        graceful_shutdown_timeout_s=options.drain_s + HANDOVER_S,
    )(serve.ingress()(Ingress))
    return ingress.bind(line, directory, engine.bind(line, directory))


class Engine:
    """The deployment of one replica of the model."""

    async def __init__(self, line: bytes, directory: Any) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._replica = EngineReplica(decode_with_paths(line, AppOptions), directory)
        await self._replica.start(_replica_id(), _host())

    def check_health(self) -> None:
        """Ray Serve replaces a replica where this raises."""
        self._replica.require_alive()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray Serve passes to the policy of autoscaling."""
        return await self._replica.load()

    async def __del__(self) -> None:
        await self._replica.stop()


class Ingress:
    """The deployment of one API worker.

    engines  of the application; bound here so that Ray Serve deploys them, and reached through the directory
    """

    async def __init__(self, line: bytes, directory: Any, engines: Any) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        self._engines = engines
        self._worker = IngressWorker(decode_with_paths(line, AppOptions), directory)
        await self._worker.start(_replica_id(), _host())

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return self._worker.app

    async def __del__(self) -> None:
        await self._worker.stop()


def _engine_resources(options: AppOptions) -> dict[str, Any]:
    """What Ray holds for a replica: its GPUs, or a CPU for each rank; ranks that Ray places hold theirs themselves."""
    import ray

    engine = options.engine
    if engine.executor_backend == "ray":
        return {"num_cpus": 1}
    has_gpus = engine.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    return {"num_cpus": 1, "num_gpus": engine.tensor_parallel_size} if has_gpus else {"num_cpus": engine.tensor_parallel_size}


def _engine_scale(scale: Scale, autoscaling: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """How many replicas there are: a number, or bounds and a policy. Raises `ConfigError` for what is no mapping."""
    if autoscaling is None:
        return {"num_replicas": scale.num_engines}
    try:
        fields = json.loads(autoscaling) if isinstance(autoscaling, str) else dict(autoscaling)
        defaults = {"initial_replicas": scale.num_engines, "target_ongoing_requests": TARGET_SEQUENCES}
        return {"autoscaling_config": {**defaults, "policy": {"policy_function": POLICY}, **fields}}
    except (TypeError, ValueError) as error:
        raise ConfigError(f"autoscaling: must hold fields of Ray Serve's AutoscalingConfig, got {autoscaling!r}") from error


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError("Ray Serve is not installed; pip install 'streamserve[ray-serve]'") from error
    return serve


def _replica_id() -> str:
    from ray import serve

    return str(serve.get_replica_context().replica_id.unique_id)


def _host() -> str:
    """The address of this node that others of the cluster know."""
    import ray

    return str(ray.util.get_node_ip_address())
