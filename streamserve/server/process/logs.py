"""Logging of the server's processes: one line an event on standard error, never a prompt, never a key."""

from __future__ import annotations

import logging

from streamserve.process.error_stream import error_stream

PROBES = frozenset({"/health", "/live", "/metrics", "/ping", "/ready"})
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(level: str) -> None:
    """Set up logging of this process; `level` as uvicorn names it."""
    chosen = {"trace": "DEBUG"}.get(level, level.upper())
    logging.basicConfig(level=logging.WARNING, stream=error_stream(), format=FORMAT)
    for name in ("streamserve", "uvicorn.access"):
        logging.getLogger(name).setLevel(chosen)
    logging.getLogger("uvicorn.access").addFilter(_is_no_probe)
    # At info uvicorn reports its own start and stop, which `StartupLog` does already.
    logging.getLogger("uvicorn.error").setLevel("WARNING" if chosen == "INFO" else chosen)


def _is_no_probe(record: logging.LogRecord) -> bool:
    """Whether an access line is no probe or scrape: those come every few seconds."""
    path = str(record.args[2]) if isinstance(record.args, tuple) and len(record.args) > 2 else ""
    return path not in PROBES
