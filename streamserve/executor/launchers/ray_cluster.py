"""The Ray cluster that an engine will join, and whether it answers. Imports no Ray.

Ray takes the address in RAY_ADDRESS, else the one that the last `ray start` on this machine has left in a file. A cluster that
was killed leaves the file behind, and Ray waits for it for minutes without a word.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from streamserve.errors import ConfigError

CONNECT_TIMEOUT_S = 5.0
"""Seconds that a cluster gets to accept a connection."""


def require_reachable_cluster() -> None:
    """Raise `ConfigError`, naming where the address comes from, when nothing answers at the address that Ray will take."""
    address, source, remedy = os.environ.get("RAY_ADDRESS", ""), "RAY_ADDRESS", "correct or unset it"
    if address in ("", "auto"):
        file = _address_file()
        address = file.read_text().strip() if file.is_file() else ""
        source, remedy = str(file), "delete it if the cluster is gone, or set RAY_ADDRESS"
    host, _, port = address.rpartition(":")
    # What else there may be ("local", "ray://…") is for Ray to judge.
    if not host or "://" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{source} names a Ray cluster at {address}, which can't be reached ({reason}): {remedy}") from error


def _address_file() -> Path:
    """Where `ray start` leaves its address, on Linux and macOS."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"
    return Path(folder) / "ray" / "ray_current_cluster"
