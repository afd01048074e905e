"""The chat page: `/` and the files under `/chat/` that it loads.

A handful of static files, read once when the server starts. The page renders model output, so its content security policy
allows no scripts but its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from mimetypes import guess_type
from typing import NamedTuple

from litestar import Response, Router, get
from litestar.params import FromPath

from streamserve.server.http.errors import NotFound

PACKAGE = "streamserve_web"
INDEX = "index.html"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self' ws: wss:",
        "img-src 'self' data:",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class PageFile(NamedTuple):
    """Content of one file of the page."""

    content: bytes
    media_type: str


def page_router() -> Router:
    """The routes of the chat page."""
    page = dict(_walk(files(PACKAGE), ""))

    @get("/")
    async def index() -> Response[bytes]:
        return _response(page, INDEX)

    @get("/chat/{name:path}")
    async def chat_file(name: FromPath[str]) -> Response[bytes]:
        return _response(page, name.lstrip("/"))

    return Router("/", route_handlers=[index, chat_file])


def _response(page: Mapping[str, PageFile], name: str) -> Response[bytes]:
    file = page.get(name)
    if file is None:
        raise NotFound("the chat page has no such file")
    return Response(file.content, media_type=file.media_type, headers=HEADERS)


def _walk(folder: Traversable, prefix: str) -> Iterator[tuple[str, PageFile]]:
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            yield from _walk(entry, f"{name}/")
        elif (media_type := guess_type(entry.name)[0]) is not None and not name.endswith((".py", ".pyc")):
            yield name, PageFile(entry.read_bytes(), media_type)
