"""How far a sequence is before its first token. Plain values, which cross the engine socket."""

from __future__ import annotations

import msgspec


class QueueProgress(msgspec.Struct, frozen=True, array_like=True, tag="queued"):
    """The sequence waits.

    position  in the queue of its tenant, from 1
    wait_s    seconds until it is likely to be its turn; None before anything is known of how fast the queue drains
    """

    position: int
    wait_s: float | None = None


class PrefillProgress(msgspec.Struct, frozen=True, array_like=True, tag="prefill"):
    """The sequence's prompt is being computed.

    total      tokens of the prompt
    cache      of these, taken from the prefix cache
    processed  of these, computed so far, with those of the cache
    time_ms    since it began
    """

    total: int
    cache: int
    processed: int
    time_ms: float


Progress = QueueProgress | PrefillProgress


__all__ = ["PrefillProgress", "Progress", "QueueProgress"]
