"""How many replicas of the model there are to be, by the sequences that they have.

Called by Ray Serve's controller with what replicas have reported (`EngineReplica.load`). Pure.
"""

from __future__ import annotations

from math import ceil
from typing import Any


def by_queue_depth(context: Any) -> tuple[int, dict[str, Any]]:
    """So many replicas that each has `target_ongoing_requests` sequences, running or waiting; delays and bounds come after.

    context  of Ray Serve, an `AutoscalingContext`
    returns  the number of replicas, and no state
    """
    sequences = sum((context.aggregated_metrics or {}).get("sequences", {}).values())
    return ceil(sequences / context.config.target_ongoing_requests), {}
