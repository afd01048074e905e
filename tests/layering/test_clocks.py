"""Which clock is read where: whoever sets a machine's clock must delay nothing, and end nothing early."""

from __future__ import annotations

from tests.layering.imports import ROOT

TIMESTAMPS = {"service.py", "embeddings.py", "prepared_request.py", "stored_response.py", "sandbox.py"}
"""Files that say what time it is to a client or a model."""

WALL_CLOCKS = ("time.time(", "datetime.now(", "utcnow(")


def test_only_timestamps_are_of_the_wall_clock() -> None:
    paths = (ROOT / "streamserve").rglob("*.py")
    readers = {path.name for path in paths if any(clock in path.read_text() for clock in WALL_CLOCKS)}
    assert readers == TIMESTAMPS
