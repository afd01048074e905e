"""Limits of this process and of those it starts, which inherit them."""

from __future__ import annotations

import os
import resource


def descriptor_limit() -> int:
    """Files and sockets that this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def raise_descriptor_limit() -> None:
    """Raise the limit on open files and sockets as far as this user may: shells set it to a fraction of that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):
        # macOS reports no hard limit, and accepts less.
        return


def share_of_cores(num_shares: int) -> int:
    """The cores that this process may use, divided; at least one."""
    return max(1, len(os.sched_getaffinity(0)) // num_shares)
