"""How a response leaves over HTTP as one object: as it stands, or once it has ended.

ASGI apps, on one API worker's event loop. What streams its events is `delivery.log_stream`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import orjson
from litestar.types import Receive, Scope, Send

from streamserve.server.apis.responses.stored_response import ResponseState, StoredResponse
from streamserve.server.delivery.asgi import Headers, send_json, wait_disconnected
from streamserve.server.delivery.delivery import Delivery
from streamserve.server.http.errors import send_error


class JsonObject:
    """Sends an object."""

    def __init__(self, value: dict[str, Any], headers: Headers) -> None:
        self._value = value
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, orjson.dumps(self._value), self._headers)


class WholeResponse:
    """Starts a response and sends an object once it has ended, or at once when it runs in the background.

    as_object  the object to send; raises what is sent as an error in its place
    """

    def __init__(
        self,
        delivery: Delivery,
        response: StoredResponse,
        headers: Headers,
        *,
        as_object: Callable[[ResponseState], dict[str, Any]] = ResponseState.as_object,
    ) -> None:
        self._as_object = as_object
        self._delivery = delivery
        self._state = response.state
        self._logged = response.logged
        self._headers = headers
        self._has_left = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._delivery.start(self._logged)
        headers = self._logged.run.headers
        if not self._state.is_background:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, receive)
                await self._logged.wait_ended()
                tasks.cancel_scope.cancel()
        if self._has_left:
            return
        if self._state.error is not None:
            await send_error(send, self._state.error, headers=headers)
        else:
            await JsonObject(self._as_object(self._state), [*self._headers, *headers])(scope, receive, send)

    async def _watch(self, receive: Receive) -> None:
        await wait_disconnected(receive)
        self._has_left = True
        self._logged.run.count_disconnect(is_blocked=False)
        self._logged.run.abort()
