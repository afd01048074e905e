"""Log-probabilities on their way back: downloaded as tensors, read as `TokenLogprobs` once their step has passed.

`download` and `PromptLogprobs` run on the launch thread, `read` on the wait thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamserve.scheduling.plan import RowWork
from streamserve.types import TokenLogprobs
from streamserve.worker.device.base import Device
from streamserve.worker.rows.traits import Traits
from streamserve_kernels import Logprobs, RowTables, token_logprobs

POSITIONS_AT_A_TIME = 256
"""Bounds the logits of a long prompt to this many lines."""


@dataclass(frozen=True, slots=True)
class HostLogprobs:
    """`Logprobs` and the tokens they are of, on their way to the host."""

    token_ids: Tensor
    values: Logprobs

    def read(self, num_tops: Sequence[int]) -> list[TokenLogprobs]:
        """One entry per line, with as many alternatives as the line requests. Only after the step's event has passed."""
        columns = (self.token_ids, self.values.logprobs, self.values.ranks, self.values.top_ids, self.values.top_logprobs)
        return [
            TokenLogprobs(token_id, logprob, rank, list(zip(top_ids[:num_top], top_logprobs[:num_top], strict=True)))
            for token_id, logprob, rank, top_ids, top_logprobs, num_top in zip(
                *(column.tolist() for column in columns), num_tops, strict=True
            )
        ]


def download(device: Device, token_ids: Tensor, values: Logprobs) -> HostLogprobs:
    """Queue the copy to the host."""
    return HostLogprobs(
        device.download(token_ids),
        Logprobs(
            device.download(values.logprobs),
            device.download(values.ranks),
            device.download(values.top_ids),
            device.download(values.top_logprobs),
        ),
    )


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Those of one row's prompt tokens, in chunks of positions."""

    row: int
    num_top: int
    chunks: list[HostLogprobs]

    def read(self) -> list[TokenLogprobs]:
        return [entry for chunk in self.chunks for entry in chunk.read([self.num_top] * len(chunk.token_ids))]


def prompt_logprobs(
    device: Device,
    tables: RowTables,
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    item: RowWork,
    traits: Traits,
) -> PromptLogprobs | None:
    """What a row's hidden states say about the prompt tokens that follow them.

    hidden  [item.count, hidden]  of the row's tokens in this step
    head    hidden states -> logits
    None when the row did not ask, or no prompt token follows a position of this step.
    """
    count = min(item.count, traits.num_prompt_tokens - 1 - item.start)
    if traits.prompt_logprobs is None or count <= 0:
        return None
    chunks = []
    for first in range(0, count, POSITIONS_AT_A_TIME):
        last = min(first + POSITIONS_AT_A_TIME, count)
        following = tables.token_ids[item.row, item.start + first + 1 : item.start + last + 1].to(torch.int64)
        values = token_logprobs(head(hidden[first:last]), following, traits.prompt_logprobs)
        chunks.append(download(device, following, values))
    return PromptLogprobs(item.row, traits.prompt_logprobs, chunks)
