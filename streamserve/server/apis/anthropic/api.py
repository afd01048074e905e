"""Anthropic's API as the server mounts it."""

from __future__ import annotations

from streamserve.server.api import Api
from streamserve.server.apis.anthropic.errors import error_body
from streamserve.server.apis.anthropic.routes import MESSAGE_PREFIX, count_tokens, create_message

ANTHROPIC = Api(
    routes=[create_message, count_tokens],
    paths=["/v1/messages"],
    id_prefixes=[MESSAGE_PREFIX],
    error_body=error_body,
)
