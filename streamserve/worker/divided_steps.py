"""Steps for which the device lacks the memory, run in pieces that it has enough for.

Runs on the launch thread. A piece holds some of the rows, or some of a prompt's tokens; pieces run one after another on the
same stream, and their results together are the step's, so that a scheduler with steps outstanding need not know. It learns
which rows even the smallest piece failed for, and how many tokens fit.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import msgspec
import torch

from streamserve.scheduling.plan import NO_TOKEN, Plan, RowWork, StepResult
from streamserve.types import TokenLogprobs

logger = logging.getLogger(__name__)

_MIN_CHUNK = 16
"""Tokens of a prompt that are not divided further."""


class Pending(Protocol):
    """A step in flight."""

    @property
    def step(self) -> int: ...

    def wait(self) -> StepResult:
        """Block until the device has run the step. Call once, on the wait thread."""
        ...


Launch = Callable[[Plan], Pending]
"""Launches a plan's work, or raises `torch.OutOfMemoryError`, in which case no row has a token more."""


class StepDivider:
    """Launches steps whole as long as they fit, and remembers how many tokens do.

    most_tokens  that fit, if that is known: larger steps are not tried

    Ranks whose launches fail alike divide alike.
    """

    def __init__(self, most_tokens: int | None = None) -> None:
        self._most_tokens = most_tokens

    def launch(self, plan: Plan, launch: Launch) -> Pending:
        """Launch a step, in pieces if need be."""
        is_tried = self._fits(plan.work)
        if is_tried and (pending := _attempt(plan, launch)) is not None:
            return pending
        return self._launch_pieces(plan, launch, ran_out=is_tried)

    def _fits(self, work: list[RowWork]) -> bool:
        return self._most_tokens is None or _num_tokens(work) <= self._most_tokens

    def _launch_pieces(self, plan: Plan, launch: Launch, *, ran_out: bool) -> Pending:
        """ran_out  whether the whole step was tried in vain"""
        pieces: list[tuple[Plan, Pending]] = []
        failed: set[int] = set()
        left = [plan.work] if (parts := halves(plan.work)) is None else [*reversed(parts)]
        while left:
            # What follows tokens that were not computed would be garbage.
            work = [item for item in left.pop() if item.row not in failed]
            parts = halves(work)
            if work and (self._fits(work) or parts is None):
                piece = msgspec.structs.replace(plan, growths=[], work=work)
                if (pending := _attempt(piece, launch)) is not None:
                    pieces.append((piece, pending))
                    continue
                ran_out = True
            if parts is None:
                failed |= {item.row for item in work}
            else:
                left += reversed(parts)
        if ran_out and pieces:
            self._lower(plan.num_tokens, max(piece.num_tokens for piece, _ in pieces))
        return PendingPieces(plan, pieces, failed, self._most_tokens)

    def _lower(self, num_tokens: int, most_tokens: int) -> None:
        self._most_tokens = most_tokens if self._most_tokens is None else min(most_tokens, self._most_tokens)
        logger.warning(
            "a step of %d tokens ran out of memory and was divided: from now on steps compute %d; "
            "to start with such steps, lower --max-num-batched-tokens, or leave more memory free",
            num_tokens,
            self._most_tokens,
        )


def halves(work: list[RowWork]) -> tuple[list[RowWork], list[RowWork]] | None:
    """The work in two parts, one to run after the other, of about as many tokens each; None when it can't be divided.

    A prompt may be divided, in chunks of at least `_MIN_CHUNK` tokens; a row with drafts may not.
    """
    room = _num_tokens(work) // 2
    sums = accumulate(item.count for item in work)
    index = next((index for index, end in enumerate(sums) if end > room), None)
    if index is None:
        return None
    first, item, rest = work[:index], work[index], work[index + 1 :]
    room -= _num_tokens(first)
    head = min(room, item.count - _MIN_CHUNK) // _MIN_CHUNK * _MIN_CHUNK if item.num_sampled <= 1 else 0
    if head > 0:
        opening = RowWork(item.row, item.start, head, 0)
        closing = msgspec.structs.replace(item, start=item.start + head, count=item.count - head)
        return [*first, opening], [closing, *rest]
    if not first:
        return ([item], rest) if rest else None
    return first, [item, *rest]


@dataclass(frozen=True, slots=True)
class PendingPieces:
    """A step in flight in several pieces.

    failed       rows of which some tokens could not be computed
    most_tokens  as in `StepResult`
    """

    plan: Plan
    pieces: list[tuple[Plan, Pending]]
    failed: set[int]
    most_tokens: int | None

    @property
    def step(self) -> int:
        return self.plan.step

    def wait(self) -> StepResult:
        """Block until the device has run all pieces. Call once, on the wait thread."""
        token_ids: dict[int, list[int]] = {}
        logprobs: dict[int, list[TokenLogprobs] | None] = {}
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        embeddings: dict[int, bytes] = {}
        for piece, pending in self.pieces:
            result = pending.wait()
            rows = [item.row for item in piece.sampled]
            token_ids |= zip(rows, result.token_ids, strict=True)
            logprobs |= zip(rows, result.logprobs or (), strict=False)
            for row, entries in (result.prompt_logprobs or {}).items():
                prompt_logprobs.setdefault(row, []).extend(entries)
            embeddings |= result.embeddings or {}
        rows = [item.row for item in self.plan.sampled]
        return StepResult(
            step=self.step,
            token_ids=[token_ids.get(row, [NO_TOKEN]) for row in rows],
            logprobs=[logprobs.get(row) for row in rows] if logprobs else None,
            prompt_logprobs=prompt_logprobs or None,
            embeddings=embeddings or None,
            failed_rows=sorted(self.failed),
            most_tokens=self.most_tokens,
        )


def _attempt(plan: Plan, launch: Launch) -> Pending | None:
    """None when memory does not suffice."""
    # Nothing may keep the exception: the frames of its traceback hold the memory.
    try:
        return launch(plan)
    except torch.OutOfMemoryError:
        return None


def _num_tokens(work: list[RowWork]) -> int:
    return sum(item.count for item in work)
