"""Decode steps captured once and replayed: one launch instead of hundreds, on a device that can (CUDA graphs on NVIDIA GPUs).

Runs on the rank's launch thread. A step of one-token rows is padded with the padding row to a captured size. What changes from
step to step (rows, their ids and number of ids) is read from device buffers at fixed places, so one capture serves every
context length. Rows with special needs replay the model alone and are sampled on their own. While the same rows decode, a step
sends the device nothing: a replay appends to its rows, and the next one begins where they end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from streamserve.models.architectures.base import CausalModel
from streamserve.scheduling.plan import Plan, RowWork
from streamserve.worker.device.base import Device, OnDemand
from streamserve.worker.rows.inputs import StepWork, WorkUploader, gather
from streamserve.worker.rows.rows import Rows
from streamserve_kernels import SamplingTensors, sample, scatter_sampled

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)


@dataclass(frozen=True, slots=True)
class Capture:
    """One captured size. What the two parts return is overwritten by the next replay.

    whole    the model, the head, sampling without special needs, and the write of the ids into the rows -> token ids [size]
    forward  the model alone -> hidden states [size, hidden_size]; captured when first used
    """

    size: int
    whole: Callable[[], Tensor]
    forward: Callable[[], Tensor]


class DecodeGraphs:
    """The captured sizes of one rank, and the work of the step before, which is still on the device."""

    def __init__(self, device: Device, model: CausalModel, rows: Rows, kv_caches: list[Tensor], uploader: WorkUploader) -> None:
        """uploader  the one that every step's work is sent with: captures read its buffer"""
        self._device = device
        self._model = model
        self._rows = rows
        self._kv_caches = kv_caches
        self._uploader = uploader
        self._captures: dict[int, Capture] = {}
        self._last: tuple[Capture, list[RowWork]] | None = None

    def capture(self) -> None:
        """Capture every size, largest first, so that the smaller ones reuse its memory."""
        for size in sorted(decode_sizes(self._rows.limits.max_num_seqs), reverse=True):
            self._captures[size] = self._capture(size)

    def find(self, work: list[RowWork]) -> Capture | None:
        """The smallest capture that holds this work; None unless all of it is decoding."""
        # Decoding rows come first, so the last count decides for all; only chunks of one token sample nothing.
        if work[-1].count != 1 or not all(item.num_sampled for item in work):
            return None
        return next((capture for size, capture in reversed(self._captures.items()) if size >= len(work)), None)

    def replay(self, capture: Capture, work: list[RowWork]) -> Tensor:
        """Run a whole step of rows without special needs -> token ids [rows]."""
        self.send(capture, work)
        self._last = capture, work
        return capture.whole()[: len(work)]

    def replay_again(self, plan: Plan) -> Tensor | None:
        """The step before once more, when this plan takes the same rows one token further; else None, and nothing is run.

        Their work is on the device already, and they have no special needs, since they had none.
        """
        if self._last is None or plan.starts or not _continues(self._last[1], plan.work):
            self._last = None
            return None
        capture = self._last[0]
        return capture.whole()[: len(plan.work)]

    def send(self, capture: Capture, work: list[RowWork]) -> StepWork:
        """Queue the upload of work padded to a capture's size."""
        return self._uploader.send(work + [self._padding] * (capture.size - len(work)))

    @property
    def _padding(self) -> RowWork:
        return RowWork(self._rows.tables.padding_row, 0, 1, 1)

    def _capture(self, size: int) -> Capture:
        tables, limits = self._rows.tables, self._rows.limits
        # Lengths of a replay are unknown here: launches are laid out for the longest.
        work = replace(self._uploader.send([self._padding] * size), max_seq_len=limits.max_model_len)

        def forward() -> Tensor:
            hidden: Tensor = self._model(gather(tables, work, limits), self._kv_caches)
            return hidden

        def whole() -> Tensor:
            inputs = gather(tables, work, limits)
            logits = self._model.logits(self._model(inputs, self._kv_caches))
            # Of a row that decodes, the tokens in the cache are all it has, and the place of the next one.
            tokens = sample(logits, SamplingTensors(tables, work.sample_rows, inputs.seq_lens))
            scatter_sampled(tables, work.sample_rows, inputs.seq_lens, tokens.token_ids)
            return tokens.token_ids

        # Once outside of a capture: kernels are compiled and loaded at their first launch, which a capture can't hold.
        whole()
        return Capture(size, self._device.capture(whole), OnDemand(self._device, forward))


def _continues(before: list[RowWork], work: list[RowWork]) -> bool:
    """Whether `work` is the next token of the same rows, of all of them and in the same order."""
    return len(before) == len(work) and all(
        now.row == then.row and now.count == 1 and now.num_sampled and now.allowed_bitmask is None
        for then, now in zip(before, work, strict=True)
    )


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Ascending; the last one holds all rows, or as many as a capture pays for."""
    sizes = [size for size in _SIZES if size < max_num_seqs]
    return [*sizes, max_num_seqs] if max_num_seqs <= _SIZES[-1] else sizes
