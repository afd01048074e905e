"""Decode steps captured once and replayed: one launch instead of hundreds, on a device that can (CUDA graphs on NVIDIA GPUs).

Runs on the rank's launch thread. A step of one-token rows is padded with the padding row to a captured size. What changes from
step to step (rows, positions, lengths, ids) is read from device buffers at fixed places, so one capture per size serves every
context length. A capture has two parts, so that lines with special needs replay the model and then sample on their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from streamserve.scheduling.plan import RowWork
from streamserve.worker.device import Device
from streamserve.worker.inputs import WorkUploader, gather
from streamserve.worker.model import Model
from streamserve.worker.rows import Rows
from streamserve_kernels import SamplingTensors, sample, scatter_sampled

_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)


@dataclass(frozen=True, slots=True)
class Capture:
    """One captured size.

    forward  runs the model -> hidden states [size, hidden_size]
    choose   after `forward`: runs the head, sampling without special needs, and the write of the ids into the rows
             -> token ids [size]

    What they return is overwritten by the next call.
    """

    forward: Callable[[], Tensor]
    choose: Callable[[], Tensor]


class DecodeGraphs:
    """The captured sizes of one rank."""

    def __init__(self, device: Device, model: Model, rows: Rows, kv_caches: list[Tensor], uploader: WorkUploader) -> None:
        """uploader  the one that every step's work is sent with: captures read its buffer"""
        self._device = device
        self._model = model
        self._rows = rows
        self._kv_caches = kv_caches
        self._uploader = uploader
        self._captures: dict[int, Capture] = {}

    def capture(self) -> None:
        """Capture every size, largest first, so that the smaller ones reuse its memory."""
        for size in sorted(decode_sizes(self._rows.room.max_num_seqs), reverse=True):
            self._captures[size] = self._capture(size)

    def find(self, work: list[RowWork]) -> tuple[Capture, list[RowWork]] | None:
        """The smallest capture that holds this work, and the work padded to its size; None unless all of it is decoding."""
        # Decoding rows come first: the last item tells for all, but for chunks of one token that sample nothing.
        if work[-1].count != 1 or not all(item.samples for item in work):
            return None
        size = next((size for size in reversed(self._captures) if size >= len(work)), None)
        if size is None:
            return None
        return self._captures[size], work + [self._padding] * (size - len(work))

    @property
    def _padding(self) -> RowWork:
        return RowWork(self._rows.tables.padding_row, 0, 1, True)

    def _capture(self, size: int) -> Capture:
        tables, room = self._rows.tables, self._rows.room
        # Lengths of a replay are unknown here: launches are laid out for the longest.
        work = replace(self._uploader.send([self._padding] * size), max_seq_len=room.max_model_len)
        hidden: list[Tensor] = []

        def forward() -> Tensor:
            hidden[:] = [self._model(gather(tables, work, room.block_size), self._kv_caches)]
            return hidden[0]

        def choose() -> Tensor:
            tokens = sample(self._model.logits(hidden[0]), SamplingTensors(tables, work.sample_rows, work.positions))
            scatter_sampled(tables, work.sample_rows, work.positions, tokens.token_ids)
            return tokens.token_ids

        # Once outside of a capture: kernels are compiled and loaded at their first launch, which a capture can't hold.
        forward()
        choose()
        self._device.synchronize()
        return Capture(self._device.capture(forward), self._device.capture(choose))


def decode_sizes(max_num_seqs: int) -> list[int]:
    """Ascending; the last one holds all rows, or as many as a capture pays for."""
    sizes = [size for size in _SIZES if size < max_num_seqs]
    return [*sizes, max_num_seqs] if max_num_seqs <= _SIZES[-1] else sizes
