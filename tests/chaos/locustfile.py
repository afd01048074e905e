"""The load test's users beside the exact clients: what becomes of each answer is a line of JSON in the file that `FATES` names.

Locust runs it, in a process of its own (`users`).
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from locust import events
from websockets.exceptions import InvalidStatus

from loadtest.streaming import BrokenStream, FailedAnswer
from loadtest.users import AgentUser, ChatUser, LeavingUser, NeverReader, ResumingUser, SlowReader, SocketUser
from tests.chaos.users import FATES

__all__ = ["AgentUser", "ChatUser", "LeavingUser", "NeverReader", "ResumingUser", "SlowReader", "SocketUser"]


@events.request.add_listener
def record(request_type: str, name: str, response_time: float, exception: Exception | None, **_: Any) -> None:
    """Write down how an answer ended, with its times by the clock that all processes share."""
    if request_type not in ("answer", "hang-up"):
        return
    now = time.monotonic()
    how, what = ("whole" if request_type == "answer" else "left", "") if exception is None else _failure(exception)
    fate = {"user": name, "began_at": now - response_time / 1e3, "ended_at": now, "how": how, "what": what}
    with Path(os.environ[FATES]).open("a") as file:
        file.write(json.dumps(fate) + "\n")


def _failure(error: Exception) -> tuple[str, str]:
    match error:
        case FailedAnswer(code=code):
            return "failed", code
        case InvalidStatus(response=response):
            return "failed", str(json.loads(response.body or b"{}")["error"]["code"])
        case BrokenStream():
            return "broken", str(error)
        case _:
            return "lost", repr(error)
