"""The parsed options of `streamserve serve`. Loads nothing of the server."""

from __future__ import annotations

from typing import Any

import msgspec

from streamserve.config import EngineConfig
from streamserve.server.config import ServerConfig
from streamserve.server.http.connections.listen import Listen


class ServeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of one server.

    workers              API workers in all, this process among them
    uses_model_defaults  whether the model's generation_config.json fills in what requests leave out
    sampling_overrides   parameters, by `SamplingParams` name, that replace those
    """

    engine: EngineConfig
    server: ServerConfig
    listen: Listen
    workers: int = 1
    uses_model_defaults: bool = True
    sampling_overrides: dict[str, Any] = {}
