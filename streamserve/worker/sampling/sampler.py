"""From a plan to the sampler's parameters: which lines of logits need what.

Runs on the launch thread. A line whose row has nothing special costs one look at its traits; lists and masks go up with the
step that needs them, in one copy.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from streamserve.scheduling.plan import RowWork
from streamserve.worker.device.base import Device
from streamserve.worker.device.staging import Packing, StagingRing
from streamserve.worker.rows.rows import Rows
from streamserve.worker.rows.traits import Choice, Traits, read_mask
from streamserve.worker.sampling.collectors import (
    BadWordCollector,
    EditCollector,
    Lines,
    LogprobCollector,
    MaskCollector,
    PenaltyCollector,
    RestrictedLines,
)
from streamserve_kernels import SamplingTensors

_START_WORDS = 1 << 14


class SamplingUploader:
    """Builds `SamplingTensors` for a step."""

    def __init__(self, device: Device, rows: Rows) -> None:
        self._rows = rows
        self._ring = StagingRing(device, _START_WORDS)

    def needs_upload(self, sampled: list[RowWork]) -> bool:
        """Whether some sampled row needs more than its state on the device."""
        traits = self._rows.traits
        return any(item.allowed_bitmask is not None or not traits(item.row).is_on_device for item in sampled)

    def send(self, sampled: list[RowWork], rows: Tensor, places: Tensor) -> SamplingTensors:
        """Queue the upload of what the sampled rows need beyond their state on the device.

        rows, places  [lines]  int32, the row of each line and the place of its token there
        """
        needs = _LineNeeds(self._rows.limits.vocab_size)
        line = 0
        for item in sampled:
            traits, end = self._rows.traits(item.row), item.start + item.count
            for num_tokens in range(end - item.num_sampled + 1, end + 1):
                needs.add(line, num_tokens, item.allowed_bitmask, traits)
                line += 1
        return needs.send(self._ring, SamplingTensors(self._rows.tables, rows, places))


class _LineNeeds:
    """The lines of one step, sorted by what they need."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._random = Lines()
        self._restricted = RestrictedLines()
        self._edits = EditCollector()
        self._bad_words = BadWordCollector()
        self._masks = MaskCollector()
        self._penalised = PenaltyCollector()
        self._logprobs = LogprobCollector()

    def add(self, line: int, num_tokens: int, allowed_bitmask: bytes | None, traits: Traits) -> None:
        """num_tokens  of the row before the line's token, or the most there can be"""
        if traits.choice is Choice.RANDOM:
            self._random.lines.append(line)
        elif traits.choice is Choice.RESTRICTED:
            self._restricted.add(line, traits.top_k)
        if traits.has_extras:
            self._add_extras(line, num_tokens, traits)
        if allowed_bitmask is not None:
            mask = read_mask(allowed_bitmask, self._vocab_size)
            self._masks.add(line, mask if traits.allowed is None else mask & traits.allowed)
        elif traits.allowed is not None:
            self._masks.add(line, traits.allowed)

    def _add_extras(self, line: int, num_tokens: int, traits: Traits) -> None:
        self._edits.add(line, traits.biases)
        if num_tokens - traits.num_prompt_tokens < traits.min_tokens:
            self._edits.ban(line, traits.stop_ids)
        self._bad_words.add(line, traits.bad_words)
        if traits.is_penalised:
            self._penalised.add(line, num_tokens)
        if traits.logprobs is not None:
            self._logprobs.add(line, traits.logprobs)

    def send(self, ring: StagingRing, lines: SamplingTensors) -> SamplingTensors:
        """`lines` with what they need, its upload queued."""
        packing = Packing()
        random, restricted = self._random.pack(packing), self._restricted.pack(packing)
        edits, bad_words, masks = self._edits.pack(packing), self._bad_words.pack(packing), self._masks.pack(packing)
        penalised, logprobs = self._penalised.pack(packing), self._logprobs.pack(packing)
        if not packing.num_words:
            return lines
        words = ring.send(packing)
        return replace(
            lines,
            random=random(words),
            restricted=restricted(words),
            max_top_k=self._restricted.max_top_k,
            edits=edits(words),
            bad_words=bad_words(words),
            masks=masks(words),
            penalties=self._penalised.read(penalised(words)),
            logprobs=self._logprobs.read(logprobs(words)),
        )
