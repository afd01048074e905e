"""Users that chat with a streaming server: send a message, read the answer as it streams, wait, send another.

Reports, for each kind of message, `answer` (its whole time), `TTFT`, and `gap` (between two pieces of text). Needs the extra
`loadtest`.
"""

from __future__ import annotations

import random

from locust import LoadTestShape, User, between, events, task
from locust.argument_parser import LocustArgumentParser

from loadtest.streaming import TimedStream, stream_timed
from streamserve_client import Client, ClientError, RetryPolicy
from streamserve_client.types import Message

SHORT = ("What is a monsoon?", "Name three rivers in Asia.", "描述一下北京的秋天", "Why is the sky blue?")
LONG_TEXT = "The harbour town kept a record of every ship, its cargo and the weather of the day. "


class ChatUser(User):
    """Sends one message at a time; reads every answer to its end."""

    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        self._client = Client(self.host or "http://127.0.0.1:8000", retry=RetryPolicy(max_retries=0))

    def on_stop(self) -> None:
        self._client.close()

    @task(4)
    def send_short(self) -> None:
        self._send("short", random.choice(SHORT), max_tokens=64)

    @task(1)
    def send_long(self) -> None:
        self._send("long", f"Summarise: {LONG_TEXT * random.randint(5, 20)}", max_tokens=128)

    def _send(self, kind: str, question: str, max_tokens: int) -> None:
        messages: list[Message] = [{"role": "user", "content": question}]
        try:
            timed = stream_timed(self._client, messages, max_tokens)
        except ClientError as error:
            self._fire("answer", kind, 0.0, error=error)
            return
        self._report(kind, timed)

    def _report(self, kind: str, timed: TimedStream) -> None:
        self._fire("answer", kind, timed.total_s, length=timed.characters)
        if timed.ttft_s is not None:
            self._fire("TTFT", kind, timed.ttft_s)
        for gap_s in timed.gaps_s:
            self._fire("gap", kind, gap_s)

    def _fire(self, event: str, kind: str, seconds: float, *, length: int = 0, error: Exception | None = None) -> None:
        self.environment.events.request.fire(
            request_type=event, name=kind, response_time=seconds * 1e3, response_length=length, exception=error, context={}
        )


@events.init_command_line_parser.add_listener
def add_step_options(parser: LocustArgumentParser) -> None:
    parser.add_argument("--step-s", type=float, default=30.0, help="Seconds between one doubling of the users and the next")
    parser.add_argument("--max-users", type=int, default=32, help="The last step has this many")


class Steps(LoadTestShape):
    """Twice as many users every `--step-s` seconds, from 1 on: where TTFT leaves its plateau is the server's capacity."""

    def tick(self) -> tuple[int, float] | None:
        options = self.runner.environment.parsed_options
        users = 2 ** int(self.get_run_time() // options.step_s)
        return (users, float(users)) if users <= options.max_users else None
