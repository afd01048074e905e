"""How long a step takes: measured figures of one replica, and the time of any step between and beyond them.

Pure. Calibrations are rows of `calibrations.json`: to add a machine, add a row.
"""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import msgspec

CALIBRATIONS = Path(__file__).with_name("calibrations.json")


class DecodeStep(msgspec.Struct, frozen=True, array_like=True):
    """A measured decode step: its rows, the tokens of context that each had, and its milliseconds."""

    rows: int
    context: int
    ms: float


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One replica's measured steps.

    source        where the figures are from
    gpus          that the replica has; 0 on a CPU
    decode        measured steps, from the fewest rows to the most
    prompt_us     microseconds that a prompt token adds to a step
    context_ns    nanoseconds that a token of context adds to a step: its bytes by the bandwidth of memory
    kv_tokens     tokens that the KV cache holds
    overhead_ms   from a request's arrival to its first step and from its last step to the client, together
    mixed_tokens_per_s  output tokens a second of the offline workload `mixed_requests`, where that was measured: what the
                  simulation is checked against, and nothing is fitted to
    """

    source: str
    gpus: int
    decode: list[DecodeStep]
    prompt_us: float
    context_ns: float
    kv_tokens: int
    overhead_ms: float = 0.0
    mixed_tokens_per_s: float | None = None


class StepTime:
    """Seconds of a step, by what it computes.

    A step reads all weights once, which takes what was measured for its rows; each token of context adds what reading it takes,
    each prompt token what computing it takes.
    """

    def __init__(self, calibration: Calibration) -> None:
        self.context_s = calibration.context_ns / 1e9
        self._prompt_s = calibration.prompt_us / 1e6
        self._rows = [step.rows for step in calibration.decode]
        self._weights_s = [step.ms / 1e3 - step.rows * step.context * self.context_s for step in calibration.decode]

    def weights_s(self, rows: int) -> float:
        """Of a step of so many rows without context, on the straight line between the measured ones around it."""
        known, seconds = self._rows, self._weights_s
        if rows <= known[0] or len(known) == 1:
            return seconds[0]
        right = min(bisect_right(known, rows), len(known) - 1)
        left = right - 1
        slope = (seconds[right] - seconds[left]) / (known[right] - known[left])
        return seconds[left] + slope * (rows - known[left])

    def step_s(self, rows: int, context: int, prompt_tokens: int = 0) -> float:
        """Of a step with `rows` decoding rows that have `context` tokens together, and `prompt_tokens` of prompts."""
        prompts_s = prompt_tokens * self._prompt_s
        if not rows:
            # Bound by arithmetic, and the weights are read meanwhile.
            return max(prompts_s, self.weights_s(1))
        return self.weights_s(rows) + context * self.context_s + prompts_s


def read_calibrations() -> dict[str, Calibration]:
    """The calibrations by name."""
    return msgspec.json.decode(CALIBRATIONS.read_bytes(), type=dict[str, Calibration])
