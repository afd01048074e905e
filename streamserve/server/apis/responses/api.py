"""The Responses API as the server mounts it."""

from __future__ import annotations

from streamserve.server.api import Api
from streamserve.server.apis.responses import routes
from streamserve.server.apis.responses.ids import RESPONSE_PREFIX
from streamserve.server.apis.responses.preparation import create_response_over_socket

RESPONSES = Api(
    routes=routes.ROUTES,
    paths=["/v1/responses"],
    id_prefixes=[RESPONSE_PREFIX],
    creates={"response.create": create_response_over_socket},
)
