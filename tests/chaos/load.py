"""Clients of every kind, round and round, each of which checks what it gets against an undisturbed run.

On the test's event loop. An answer has one ending with a reason, and whoever gets all of a greedy answer gets the tokens of a
run without faults. A connection may be lost only when the process at its other end was made to end.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import anyio
import httpx
from anyio.abc import SocketStream
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from streamserve.server.open_sockets import RESTARTING
from tests.chaos.losses import Losses
from tests.server.ws.session import Session, session

REASONS = frozenset({"engine_dead", "ends_engines", "out_of_memory", "queue_full", "unavailable", "too_many_connections"})
"""Codes with which an answer may be refused or end while faults are injected."""

LOST = (
    httpx.TransportError,
    ConnectionClosed,
    WebSocketException,
    OSError,
    anyio.BrokenResourceError,
    anyio.EndOfStream,
)
"""What the loss of a connection looks like."""

FINISHED, LEFT = DONE = ("finished", "left")

PATIENCE_S = 150.0
"""Seconds without an end, or a word, after which an answer is taken to have none: two engines may be started meanwhile."""

LENGTHS = (1, 3, 9, 20, 60)

BROKEN_TOKEN = 195
"""The token of the model that its logits are NaN after, which is in no prompt of `Prompts`."""

NO_TOKEN = "no_token_possible"


class Prompts:
    """Prompts with their undisturbed greedy answers."""

    def __init__(self, seed: int) -> None:
        drawing = random.Random(seed)
        self.bodies = [
            {
                "prompt": [drawing.randrange(3, 190) for _ in range(length)],
                "max_tokens": drawing.choice((4, 30, 90, 180)),
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
            }
            for length in LENGTHS * 4
        ]
        self.answers: list[list[int]] = []

    async def answer_undisturbed(self, base_url: str) -> None:
        """Ask for all of them while nothing is wrong."""
        async with httpx.AsyncClient(base_url=base_url, timeout=PATIENCE_S) as client:
            for body in self.bodies:
                response = await client.post("/v1/completions", json=body)
                self.answers.append(response.json()["choices"][0]["token_ids"])
        assert all(len(answer) == body["max_tokens"] for body, answer in zip(self.bodies, self.answers, strict=True))


class Load:
    """Clients that ask until the block of `running` ends.

    losses    when connections may be lost
    outcomes  how many answers ended in which way
    """

    def __init__(self, port: int, prompts: Prompts, losses: Losses, seed: int) -> None:
        self._port = port
        self._prompts = prompts
        self._random = random.Random(seed)
        self._is_ending = False
        self._losses = losses
        self.outcomes: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self, count: int) -> AsyncIterator[None]:
        """Run so many clients while the block runs; what they have begun by its end they finish."""
        kinds = (
            self._stream,
            self._stream,
            self._whole,
            self._socket,
            self._slow,
            self._leaves,
            self._half_closes,
            self._breaks_off,
            self._fails,
        )
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(self._repeat, kinds[number % len(kinds)])
            yield
            self._is_ending = True

    async def complete(self, place: int = 0) -> None:
        """One plain answer, which must be right."""
        body, answer = self._prompts.bodies[place], self._prompts.answers[place]
        async with httpx.AsyncClient(base_url=self._base_url, timeout=PATIENCE_S) as client:
            response = await client.post("/v1/completions", json=body)
            assert response.status_code == 200, response.text
            assert response.json()["choices"][0]["token_ids"] == answer

    @property
    def _base_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def _repeat(self, kind: Callable[[dict[str, Any], list[int]], Awaitable[str]]) -> None:
        while not self._is_ending:
            place = self._random.randrange(len(self._prompts.bodies))
            began, lost = monotonic(), None
            try:
                with anyio.fail_after(PATIENCE_S):
                    outcome = await kind(self._prompts.bodies[place], self._prompts.answers[place])
            except LOST as error:
                outcome, lost = "lost with its worker", error
            # The loss of a connection may be noticed before the test knows of its cause, and who was refused comes later.
            await anyio.sleep(0.02 if outcome in DONE else 0.25)
            explained = lost is None or self._losses.explain(began, monotonic())
            assert explained, f"{kind.__name__} lost its connection: {lost!r}"
            self.outcomes[outcome] += 1

    async def _stream(self, body: dict[str, Any], answer: list[int], pause_s: float = 0.0) -> str:
        async with httpx.AsyncClient(base_url=self._base_url, timeout=PATIENCE_S) as client:
            async with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
                if response.status_code != 200:
                    await response.aread()
                    return _refused(_body(response))
                lines = []
                async for line in response.aiter_lines():
                    lines += [line] if line.startswith("data: ") else []
                    await anyio.sleep(pause_s)
        assert lines, "a stream without an end"
        assert [line == "data: [DONE]" for line in lines] == [False] * (len(lines) - 1) + [True], "not one end"
        return _checked([json.loads(line.removeprefix("data: ")) for line in lines[:-1]], answer)

    async def _slow(self, body: dict[str, Any], answer: list[int]) -> str:
        return await self._stream(body, answer, pause_s=0.05)

    async def _whole(self, body: dict[str, Any], answer: list[int]) -> str:
        async with httpx.AsyncClient(base_url=self._base_url, timeout=PATIENCE_S) as client:
            response = await client.post("/v1/completions", json=body)
        if response.status_code != 200:
            return _refused(_body(response))
        return _checked([response.json()], answer)

    async def _socket(self, body: dict[str, Any], answer: list[int]) -> str:
        while True:
            try:
                async with session(self._port) as client:
                    try:
                        return await self._talk(client, body, answer)
                    except ConnectionClosed as closed:
                        if client.events or closed.rcvd is None or closed.rcvd.code != RESTARTING.code:
                            raise
            except InvalidStatus as refused:
                return _refused(json.loads(refused.response.body))
            # What crosses the close of a worker that is replaced has begun nothing.
            self.outcomes["sent again"] += 1

    async def _talk(self, client: Session, body: dict[str, Any], answer: list[int]) -> str:
        await client.send({"type": "completion.create", "stream_id": "s", **body})
        while True:
            message = json.loads(await client.connection.recv())
            client.events.append(message)
            if message["type"] == "error":
                return _refused(message)
            if message["type"] == "completion.done":
                break
        return _checked([event["data"] for event in client.events if "data" in event], answer)

    async def _leaves(self, body: dict[str, Any], answer: list[int]) -> str:
        async with await self._ask(body) as stream:
            await stream.receive()
            await anyio.sleep(self._random.random() * 0.1)
        return LEFT

    async def _half_closes(self, body: dict[str, Any], answer: list[int]) -> str:
        """Ends what it sends, and reads on: to the server it has gone, and no more comes than the connection's end."""
        async with await self._ask(body) as stream:
            await stream.send_eof()
            while True:
                try:
                    await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    return LEFT

    async def _breaks_off(self, body: dict[str, Any], answer: list[int]) -> str:
        """Leaves in the middle of its request."""
        async with await self._ask(body, share=self._random.random()):
            await anyio.sleep(self._random.random() * 0.1)
        return LEFT

    async def _fails(self, body: dict[str, Any], answer: list[int]) -> str:
        """Has logits that are NaN, which is to cost this answer, and nobody else's of the same steps."""
        async with httpx.AsyncClient(base_url=self._base_url, timeout=PATIENCE_S) as client:
            response = await client.post("/v1/completions", json={**body, "prompt": [*body["prompt"], BROKEN_TOKEN]})
        assert response.status_code != 200, "an answer from logits that are NaN"
        return _refused(_body(response), REASONS | {NO_TOKEN})

    async def _ask(self, body: dict[str, Any], *, share: float = 1.0) -> SocketStream:
        """A connection on which this share of a request for a stream has been sent."""
        content = json.dumps({**body, "stream": True}).encode()
        stream = await anyio.connect_tcp("127.0.0.1", self._port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        request = head.encode() + content
        await stream.send(request[: round(share * len(request))])
        return stream


def _checked(chunks: list[dict[str, Any]], answer: list[int]) -> str:
    """How an answer ended, which must be well, with all tokens of the undisturbed run, or for a reason."""
    if "error" in chunks[-1]:
        return _refused(chunks[-1])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    reasons = [choice["finish_reason"] for choice in choices if choice["finish_reason"] is not None]
    assert reasons == ["length"], f"ended with {reasons}"
    tokens = [token_id for choice in choices for token_id in choice.get("token_ids") or []]
    assert tokens == answer, "not the tokens of the undisturbed run"
    return FINISHED


def _body(response: httpx.Response) -> dict[str, Any]:
    assert response.headers.get("content-type") == "application/json", f"{response} without a reason: {response.content!r}"
    body: dict[str, Any] = response.json()
    return body


def _refused(body: dict[str, Any], reasons: frozenset[str] = REASONS) -> str:
    code = str(body["error"]["code"])
    assert code in reasons, body
    return code
