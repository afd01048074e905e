"""Response bodies of the endpoints beside generation, and of every error, for /openapi.json. Types only."""

from __future__ import annotations

from typing import Literal

from msgspec import UNSET, Struct, UnsetType


class ErrorObject(Struct, kw_only=True):
    """What is wrong; `param` names the parameter."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(Struct, kw_only=True):
    """The body of every error."""

    error: ErrorObject


class ModelPermission(Struct, kw_only=True):
    """What clients may do with a model; the same of all models."""

    id: str
    object: Literal["model_permission"]
    created: int
    allow_create_engine: bool
    allow_sampling: bool
    allow_logprobs: bool
    allow_search_indices: bool
    allow_view: bool
    allow_fine_tuning: bool
    organization: str
    group: str | None
    is_blocking: bool


class Model(Struct, kw_only=True):
    """A name that requests may give."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str | None
    parent: str | None
    max_model_len: int
    permission: list[ModelPermission]


class ModelList(Struct, kw_only=True):
    """All names that requests may give."""

    object: Literal["list"]
    data: list[Model]


class RequestCancelled(Struct, kw_only=True):
    """A request that has been cancelled."""

    id: str
    object: Literal["request.cancelled"]
    cancelled: bool


class RequestAnswering(Struct, kw_only=True):
    """A request whose reasoning has been ended."""

    id: str
    object: Literal["request.answering"]
    answering: bool


class ReadyStatus(Struct, kw_only=True):
    """A server that takes requests."""

    status: Literal["ready"]


class Version(Struct, kw_only=True):
    """The version of streamserve."""

    version: str


class ServerLoad(Struct, kw_only=True):
    """How busy the server is; without the engine's part while no engine answers."""

    server_load: int
    phase: Literal["loading", "ready", "draining", "dead"]
    num_requests_running: int | UnsetType = UNSET
    num_requests_waiting: int | UnsetType = UNSET
    num_requests_paused: int | UnsetType = UNSET
    kv_blocks_used: int | UnsetType = UNSET
    kv_blocks_total: int | UnsetType = UNSET
