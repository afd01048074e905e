"""A stub of the Hugging Face Hub on loopback: one repository per folder, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "org/gated"


class StubHub:
    """Serves `repositories`, a folder holding <org>/<name>/<files>, and remembers the paths asked for.

    stall_at  a path that holds this gets no answer, a file half of its bytes; `stalled` is set then
    """

    def __init__(self, repositories: Path) -> None:
        self.repositories = repositories
        self.requests: list[str] = []
        self.url = ""
        self.stall_at: str | None = None
        self.stalled = threading.Event()
        self.is_over = threading.Event()

    def downloads(self) -> set[str]:
        """Names of the files whose contents were sent."""
        return {path.rpartition("/")[2] for path in self.requests if path.startswith("GET") and "/resolve/" in path}


@contextmanager
def stub_hub(repositories: Path) -> Iterator[StubHub]:
    hub = StubHub(repositories)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.is_over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(hub: StubHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, format: str, *args: object) -> None:
            hub.requests.append(f"{self.command} {self.path}" if format.startswith('"%s"') else "")

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            stalls = hub.stall_at is not None and hub.stall_at in path
            listing = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/[^/]+", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            name = (listing or file or [None, ""])[1]
            folder = hub.repositories / name
            if not name or not folder.is_dir():
                return self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
            if name == GATED and file:
                return self._send(403, b"", {"X-Error-Code": "GatedRepo"})
            if stalls and not file:
                return self._stall()
            if listing:
                return self._send(200, self._listing(folder, tree="/tree/" in path), {"Content-Type": "application/json"})
            return self._file(folder / file[2], with_body=with_body, stalls=stalls and with_body)

        def _stall(self) -> None:
            hub.stalled.set()
            hub.is_over.wait()
            self.close_connection = True

        def _listing(self, folder: Path, *, tree: bool) -> bytes:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [str(path.relative_to(folder)) for path in files]
            if tree:
                entries = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _sha(path)}
                    for name, path in zip(names, files, strict=True)
                ]
                return json.dumps(entries).encode()
            return json.dumps({"id": folder.name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()

        def _file(self, path: Path, *, with_body: bool, stalls: bool) -> None:
            if not path.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            body = path.read_bytes()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{_sha(path)}"', "Content-Type": "application/octet-stream"}
            return self._send(200, body, headers, with_body=with_body, stalls=stalls)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], *, with_body: bool = True, stalls: bool = False
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if stalls:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self._stall()
            elif with_body:
                self.wfile.write(body)

    return Handler


def _sha(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
