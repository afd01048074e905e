"""Steps with prompt tokens captured and replayed: a few hundred launches for one, which is most of what a short prompt takes.

Runs on the rank's launch thread. A step is padded to a captured size, its decoding rows and its tokens apart; which rows they
belong to and where each sequence begins is read from device buffers, so a size serves every way in which its tokens fall into
prompts. Some sizes of prompts alone are captured at the start, others when they first come up. Larger steps are launched as
ever: they keep the device busy for longer than launching takes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from streamserve.models.architectures.base import CausalModel
from streamserve.scheduling.plan import RowWork
from streamserve.worker.device.base import Device, OnDemand
from streamserve.worker.rows.inputs import StepWork, WorkUploader, gather
from streamserve.worker.rows.rows import Rows

MAX_PROMPTS = 32
"""Sequences of several tokens in a captured step, padding among them."""

_TOKENS = (16, 32, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048)
_DECODES = (0, 8, 32, 64, 128, 192, 256, 384, 512)
_AT_START = (64, 128, 256, 512, 1024)


class _Size(NamedTuple):
    """How many sequences of one token a step has, and how many tokens of longer ones."""

    decodes: int
    tokens: int


class PromptGraphs:
    """The captured sizes of one rank."""

    def __init__(self, device: Device, model: CausalModel, rows: Rows, kv_caches: list[Tensor], uploader: WorkUploader) -> None:
        """uploader  the one that every step's work is sent with, of `MAX_PROMPTS` beyond all rows: captures read its buffer"""
        self._device = device
        self._model = model
        self._rows = rows
        self._kv_caches = kv_caches
        self._uploader = uploader
        self._captures: dict[_Size, OnDemand] = {}
        self._tokens: list[int] = []
        self._decodes: list[int] = []
        self._states: Tensor | None = None

    def capture(self, max_num_batched_tokens: int) -> None:
        """Capture the largest step, so that all others reuse its memory, and prompts alone of some sizes.

        Until then `run` runs nothing.
        """
        self._tokens = [size for size in _TOKENS if size < max_num_batched_tokens]
        self._tokens += _TOKENS[len(self._tokens) : len(self._tokens) + 1]
        self._decodes = sorted({min(size, self._rows.limits.max_num_seqs) for size in _DECODES})
        self.run([self._padded_row(1)] * self._decodes[-1] + self._padding(self._tokens[-1]))
        for size in reversed(_AT_START):
            if size in self._tokens:
                self.run(self._padding(size))

    def run(self, work: list[RowWork]) -> tuple[StepWork, Tensor] | None:
        """Run the model on a step's work -> the work with its padding, and hidden states [its tokens, hidden_size].

        The states are overwritten by the next run. None, and nothing is run, where no size holds the work, or a row has drafts.
        """
        if any(item.num_sampled > 1 for item in work):
            return None
        num_decodes = sum(item.count == 1 for item in work)
        size = self._size(num_decodes, sum(item.count for item in work[num_decodes:]))
        padded = self._pad(work[:num_decodes], work[num_decodes:], size) if size is not None else None
        if size is None or padded is None:
            return None
        sent = self._uploader.send(padded)
        if size not in self._captures:
            self._captures[size] = self._forward(sent)
        return sent, self._captures[size]()

    def _size(self, num_decodes: int, num_tokens: int) -> _Size | None:
        """The smallest that holds so much."""
        decodes = next((size for size in self._decodes if size >= num_decodes), None)
        tokens = next((size for size in self._tokens if size >= num_tokens), None)
        return None if decodes is None or tokens is None else _Size(decodes, tokens)

    def _pad(self, decodes: list[RowWork], prompts: list[RowWork], size: _Size) -> list[RowWork] | None:
        """The work with padding behind its decodes and behind its prompts; None when there are too many prompts."""
        decodes = decodes + [self._padded_row(1)] * (size.decodes - len(decodes))
        prompts = prompts + self._padding(size.tokens - sum(item.count for item in prompts))
        if len(prompts) > MAX_PROMPTS:
            return None
        return decodes + prompts + [self._padded_row(0)] * (MAX_PROMPTS - len(prompts))

    def _padding(self, num_tokens: int) -> list[RowWork]:
        """Sequences of so many tokens that are written nowhere."""
        most = self._rows.limits.max_model_len
        return [self._padded_row(min(most, num_tokens - done)) for done in range(0, num_tokens, most)]

    def _padded_row(self, count: int) -> RowWork:
        return RowWork(self._rows.tables.padding_row, 0, count, 0)

    def _forward(self, sent: StepWork) -> OnDemand:
        tables, limits = self._rows.tables, self._rows.limits
        # Lengths of a replay are unknown here: launches are laid out for the longest.
        work = replace(sent, max_seq_len=limits.max_model_len)

        def forward() -> Tensor:
            hidden = self._model(gather(tables, work, limits), self._kv_caches)
            if self._states is None:
                # The first size is the largest. With a place for each, states would take as much as all activations.
                self._states = hidden
            return self._states[: len(hidden)].copy_(hidden)

        return OnDemand(self._device, forward)
