"""Why a socket is closed from this side; `open_sockets` has the reasons that concern all of them.

uvicorn itself closes with 1007 (not UTF-8), 1009 (message too large) and, when it stops, 1012.
"""

from __future__ import annotations

from streamserve.server.open_sockets import Closing

BINARY = Closing(1003, "send text: every message is a JSON object")
SERVER_FAULT = Closing(1011, "internal server error")
SLOW = Closing(1013, "this socket does not drain")
NOT_AN_OBJECT = Closing(4400, "every message must be a JSON object")
TOO_OLD = Closing(4408, "this socket is open for too long: connect again")
IDLE = Closing(4408, "this socket was idle for too long")
TOO_MANY_CREATES = Closing(4429, "too many streams wait on this socket")
