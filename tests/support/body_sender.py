"""Sends large bodies from a process of its own, so that the work of writing and sending them is not measured.

    python -m tests.support.body_sender PORT

Reads a `LargeBody` a line from stdin, as JSON, sends it when the next line comes, and prints the status of the answer.
"""

from __future__ import annotations

import http.client
import sys
from typing import Any

import msgspec
from websockets.sync.client import connect


class LargeBody(msgspec.Struct, frozen=True, kw_only=True):
    """A body of many repetitions.

    path     to POST to, or that of a WebSocket, over which the body goes as one message
    each     what is repeated, with a number for %d, `count` times between `before` and `after`
    """

    path: str
    before: str
    each: str
    count: int
    after: str

    def written(self) -> str:
        each = (self.each % number for number in range(self.count)) if "%d" in self.each else [self.each] * self.count
        return f"{self.before}{','.join(each)}{self.after}"


def send(port: int, body: LargeBody, text: str) -> int:
    """The status of the answer; over a socket that of an error, or 200."""
    if body.path == "/v1/ws":
        with connect(f"ws://127.0.0.1:{port}{body.path}", compression=None, max_size=None) as socket:
            socket.send(text)
            message: dict[str, Any] = {"type": ""}
            while message["type"] not in ("error", "completion.done"):
                message = msgspec.json.decode(socket.recv())
            return int(message["status"]) if message["type"] == "error" else 200
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", body.path, text.encode(), {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


def main() -> None:
    for line in sys.stdin:
        body = msgspec.json.decode(line, type=LargeBody)
        text = body.written()
        print("ready", flush=True)
        sys.stdin.readline()
        print(send(int(sys.argv[1]), body, text), flush=True)


if __name__ == "__main__":
    main()
