"""An answer as one JSON object, sent when every choice has finished; a client that leaves before that ends its sequences."""

from __future__ import annotations

from typing import Any

from litestar.types import Receive, Send

from streamserve.engine.error_info import restore
from streamserve.errors import StreamFailed, StreamserveError
from streamserve.server.apis.openai.results import Result
from streamserve.server.delivery.answer import Answer, Generation
from streamserve.server.http.errors import guarded, send_error


class WholeAnswer(Answer):
    """Collects text deltas into `result`."""

    def __init__(self, result: Result, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._result = result

    async def _answer(self, generation: Generation, send: Send) -> None:
        try:
            body = await self._collect(generation)
        except Exception as error:
            self._error = guarded(error, self.request_id)
            return
        self._has_ended = True
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *self._headers]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _collect(self, generation: Generation) -> bytes:
        async for delta in generation:
            if delta.finish_reason == "error":
                raise StreamFailed("unknown error") if delta.error is None else restore(delta.error)
            self._account.record(delta)
            self._result.add(delta)
            if self._account.unfinished == 0:
                return self._result.body()
        raise StreamFailed("the engine's stream ended without a finish")

    async def _answer_failure(self, error: StreamserveError, send: Send) -> None:
        await send_error(send, error)

    async def _watch(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        self._leave("streaming" if self._account.has_begun else "queued")
