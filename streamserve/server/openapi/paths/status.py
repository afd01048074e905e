"""Paths of probes, metrics and the chat page."""

from __future__ import annotations

from streamserve.server.openapi.operations import (
    Body,
    Paths,
    json_content,
    operation,
    path_parameter,
    secured,
)
from streamserve.server.openapi.response_schemas import (
    Error,
    ReadyStatus,
    ServerLoad,
    Version,
)

RESPONSES: list[Body] = [Error, ReadyStatus, ServerLoad, Version]


def state_paths() -> Paths:
    """Probes, the load, metrics, and this document."""
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/live": {"get": operation("live", "200 while the process answers: for liveness probes.", text)},
        "/health": {
            "get": operation(
                "health", "200 while requests are taken: 503 while loading or draining, and once the engine is gone.", text
            )
        },
        "/ping": {
            "get": operation("ping", "As /health, under SageMaker's name.", text),
            "post": operation("pingByPost", "As GET.", text),
        },
        "/ready": {
            "get": operation(
                "ready", "As /health, and 503 while the engine's loop stands still, too.", json_content(ReadyStatus)
            )
        },
        "/version": {"get": operation("version", "The server's version.", json_content(Version))},
        "/load": {"get": secured(operation("load", "How busy the server is.", json_content(ServerLoad)))},
        "/metrics": {"get": secured(operation("metrics", "Prometheus' text format.", text))},
        "/openapi.json": {
            "get": secured(operation("openapi", "This document.", {"application/json": {"schema": {"type": "object"}}}))
        },
    }


def page_paths() -> Paths:
    """The chat page and its files."""
    html = {"text/html": {"schema": {"type": "string"}}}
    return {
        "/": {"get": operation("page", "The chat page.", html)},
        "/chat/{name}": {
            "get": operation("pageFile", "A file that the chat page loads.", {"*/*": {}}, path_parameter("name", "chat.css"))
        },
    }
