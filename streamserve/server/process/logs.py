"""How the server's processes log: one line an event on standard error, never a prompt, never a key."""

from __future__ import annotations

import logging
import sys

PROBES = frozenset({"/health", "/ready", "/metrics"})
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Set up logging for this process; `level` is uvicorn's name of one."""
    chosen = {"trace": "DEBUG"}.get(level, level.upper())
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=FORMAT)
    for name in ("streamserve", "uvicorn.access"):
        logging.getLogger(name).setLevel(chosen)
    logging.getLogger("uvicorn.access").addFilter(_is_no_probe)
    # At info uvicorn tells of its own start and stop, which the start-up timeline tells better.
    logging.getLogger("uvicorn.error").setLevel("WARNING" if chosen == "INFO" else chosen)


def _is_no_probe(record: logging.LogRecord) -> bool:
    """Whether an access line is worth reading: probes and scrapes come every few seconds."""
    path = str(record.args[2]) if isinstance(record.args, tuple) and len(record.args) > 2 else ""
    return path not in PROBES
