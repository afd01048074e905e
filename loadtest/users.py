"""The users of a load test: who chats over SSE and over WebSockets, lets agents work, loses connections, reads slowly, leaves.

Runs in Locust's greenlets. Each reports its answers to Locust: `answer` (its whole time), `TTFT`, and `gap` (between two
pieces of text). An answer that is refused or lost, or ends twice, never, or without a reason is a failure.
"""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import httpx
from locust import User, between, constant, task
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.sync.client import connect

from loadtest.streaming import AnswerTimes, BrokenStream, FailedAnswer, completion_events, completion_text, raise_for_status
from loadtest.texts import LONG_TEXT, SHARED_PREFIX, SHORT, TOOLS

TIMEOUT_S = 120.0


class StreamingUser(User):
    """Sends one message at a time and reports how its answer came."""

    abstract = True
    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        self.http = httpx.Client(base_url=self.host or "http://127.0.0.1:8000", timeout=TIMEOUT_S)

    def on_stop(self) -> None:
        self.http.close()

    def report(self, kind: str, times: AnswerTimes) -> None:
        """Report an answer that came whole."""
        self.fire("answer", kind, times.total_s, length=times.characters)
        if times.ttft_s is not None:
            self.fire("TTFT", kind, times.ttft_s)
        for gap_s in times.gaps_s:
            self.fire("gap", kind, gap_s)

    def fire(self, event: str, kind: str, seconds: float, *, length: int = 0, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=event, name=kind, response_time=seconds * 1e3, response_length=length, exception=error, context={}
        )

    def chat(self, kind: str, messages: list[dict[str, Any]], max_tokens: int, **fields: Any) -> str:
        """Stream a chat to its end and report it; returns its text, empty after a failure."""
        body = {"messages": messages, "max_tokens": max_tokens, "stream": True, **fields}
        times, began = AnswerTimes(), time.perf_counter()
        text = ""
        try:
            with self.http.stream("POST", "/v1/chat/completions", json=body) as response:
                for event in completion_events(response):
                    piece = completion_text(event)
                    times.observe(piece, time.perf_counter() - began)
                    text += piece
        except (httpx.HTTPError, BrokenStream, FailedAnswer) as error:
            self.fire("answer", kind, time.perf_counter() - began, error=error)
            return ""
        times.total_s = time.perf_counter() - began
        self.report(kind, times)
        return text


class ChatUser(StreamingUser):
    """Sends short messages, and now and then a long one, over SSE."""

    weight = 6

    @task(4)
    def send_short(self) -> None:
        self.chat("short", [_user(random.choice(SHORT))], 64)

    @task(1)
    def send_long(self) -> None:
        self.chat("long", [_user(f"Summarise: {LONG_TEXT * random.randint(5, 20)}")], 128)


class AgentUser(StreamingUser):
    """Works in turns with tools behind a long prompt that all agents share, so that most of each prompt is cached."""

    weight = 2

    @task
    def work(self) -> None:
        messages: list[dict[str, Any]] = [{"role": "system", "content": SHARED_PREFIX}]
        for _ in range(3):
            messages.append(_user(random.choice(SHORT)))
            answer = self.chat("agent", messages, 32, tools=TOOLS, tool_choice="none")
            messages.append({"role": "assistant", "content": answer or "..."})


class SocketUser(StreamingUser):
    """Chats over one WebSocket, several streams at a time."""

    weight = 3

    @task
    def talk(self) -> None:
        began, running = time.perf_counter(), {"a", "b", "c"}
        try:
            while running:
                with connect(f"ws{(self.host or '').removeprefix('http')}/v1/ws", open_timeout=TIMEOUT_S) as websocket:
                    for answer in self._answers(websocket, running):
                        self.report("socket", answer)
        except Exception as error:
            self.fire("answer", "socket", time.perf_counter() - began, error=error)

    def _answers(self, websocket: Any, running: set[str]) -> Iterator[AnswerTimes]:
        """Ask for the answers of these names, and take out those that have come; others crossed the close of a restart."""
        times, began, has_begun = {name: AnswerTimes() for name in running}, time.perf_counter(), set[str]()
        try:
            for name in sorted(running):
                body = {"messages": [_user(random.choice(SHORT))], "max_tokens": 48}
                websocket.send(json.dumps({"type": "chat.completion.create", "stream_id": name, **body}))
            while running:
                event, now = json.loads(websocket.recv(timeout=TIMEOUT_S)), time.perf_counter() - began
                name = event.get("stream_id")
                if name not in running:
                    raise BrokenStream(f"unexpected {event}")
                has_begun.add(name)
                if event["type"] == "error":
                    raise FailedAnswer(str(event["error"]["code"]))
                if event["type"] == "chat.completion.done":
                    running.remove(name)
                    times[name].total_s = now
                    yield times[name]
                elif event["type"] == "chat.completion.chunk":
                    times[name].observe(completion_text(event["data"]), now)
        except ConnectionClosed as closed:
            if closed.rcvd is None or closed.rcvd.code != CloseCode.GOING_AWAY or running & has_begun:
                raise


class ResumingUser(StreamingUser):
    """Asks over the Responses API, loses the connection in the middle, and reads on where it was."""

    weight = 2

    @task
    def ask(self) -> None:
        began, numbers, id = time.perf_counter(), list[int](), ""
        try:
            body = {"input": random.choice(SHORT), "max_output_tokens": 48, "stream": True, "background": True, "store": True}
            with self.http.stream("POST", "/v1/responses", json=body) as response:
                for event in _response_events(response):
                    numbers.append(event["sequence_number"])
                    id = event.get("response", {}).get("id", id)
                    if len(numbers) == 8:
                        break
            if not numbers:
                raise BrokenStream("a response without an event")
            parameters = {"stream": "true", "starting_after": numbers[-1]}
            with self.http.stream("GET", f"/v1/responses/{id}", params=parameters) as response:
                events = list(_response_events(response))
            numbers += [event["sequence_number"] for event in events]
            if numbers != list(range(len(numbers))) or (events and events[-1]["type"] not in _ENDS):
                raise BrokenStream(f"events {numbers[:3]}… do not follow each other, or have no end")
        except (httpx.HTTPError, BrokenStream, FailedAnswer) as error:
            self.fire("answer", "resumed", time.perf_counter() - began, error=error)
            return
        self.fire("answer", "resumed", time.perf_counter() - began, length=len(numbers))


class LeavingUser(StreamingUser):
    """Hangs up: at once, before the first token, or in the middle of an answer."""

    weight = 2
    wait_time = between(0.1, 0.5)

    @task
    def leave(self) -> None:
        began = time.perf_counter()
        with closing(_asked(self.host, max_tokens=256)) as connection:
            for _ in range(random.choice((0, 1, 5))):
                connection.recv(4096)
        self.fire("hang-up", "left", time.perf_counter() - began)


class SlowReader(StreamingUser):
    """Reads a byte a second for half a minute, and leaves."""

    weight = 1

    @task
    def dawdle(self) -> None:
        began = time.perf_counter()
        with closing(_asked(self.host, max_tokens=512, receive_buffer=4096)) as connection:
            for _ in range(30):
                connection.recv(1)
                time.sleep(1)
        self.fire("hang-up", "slow", time.perf_counter() - began)


class NeverReader(StreamingUser):
    """Asks and never reads."""

    weight = 1
    wait_time = constant(1.0)

    @task
    def ignore(self) -> None:
        began = time.perf_counter()
        with closing(_asked(self.host, max_tokens=512, receive_buffer=4096)):
            time.sleep(20)
        self.fire("hang-up", "never read", time.perf_counter() - began)


_ENDS = ("response.completed", "response.incomplete")


def _user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _response_events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    raise_for_status(response)
    for line in response.iter_lines():
        if line.startswith("data: "):
            event = json.loads(line.removeprefix("data: "))
            if event["type"] in ("error", "response.failed"):
                raise FailedAnswer(str((event.get("response", {}).get("error") or event)["code"]))
            yield event


def _asked(host: str | None, *, max_tokens: int, receive_buffer: int | None = None) -> socket.socket:
    """A connection on which a stream has been requested.

    receive_buffer  bytes that the kernel holds for it; its own choice when not given
    """
    address = urlsplit(host or "http://127.0.0.1:8000")
    connection = socket.socket()
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    connection.settimeout(TIMEOUT_S)
    connection.connect((address.hostname, address.port or 80))
    body = json.dumps({"messages": [_user(random.choice(SHORT))], "max_tokens": max_tokens, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection
