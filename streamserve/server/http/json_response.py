"""Small JSON responses."""

from __future__ import annotations

from typing import Any

import orjson
from litestar import Response


def json_response(body: dict[str, Any], headers: dict[str, str] | None = None) -> Response[bytes]:
    """200 with `body` as JSON, encoded by orjson as all of this server's JSON is."""
    return Response(orjson.dumps(body), media_type="application/json", status_code=200, headers=headers)
