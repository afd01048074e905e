"""Masks that a plan carries for single rows, as grammars make them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from streamserve.scheduling.plan import Plan, RowGrowth, RowStart, RowWork
from streamserve.types import Sampling
from streamserve.worker.rows.traits import make_mask, read_mask
from tests.support.stepping import Stepper
from tests.support.tiny_model import VOCAB


def mask_of(*token_ids: int, vocab_size: int = VOCAB) -> bytes:
    return make_mask(list(token_ids), vocab_size).tobytes()


def test_a_mask_has_bit_t_of_word_t_over_32() -> None:
    mask = make_mask([0, 31, 32, 198], VOCAB)
    assert mask.dtype == np.uint32
    assert mask.tolist() == [1 | 1 << 31, 1, 0, 0, 0, 0, 1 << 6]


@pytest.mark.parametrize("vocab_size", [64, VOCAB, 512])
def test_a_mask_narrower_or_wider_than_the_vocabulary_allows_nothing_outside_it(vocab_size: int) -> None:
    mask = read_mask(mask_of(5, 63, 198, vocab_size=224), vocab_size)
    assert len(mask) == -(-vocab_size // 32)
    allowed = [t for t in range(len(mask) * 32) if mask[t // 32] >> np.uint32(t % 32) & 1]
    assert allowed == [t for t in (5, 63, 198) if t < len(mask) * 32]


def test_each_step_obeys_its_own_mask_and_the_rows_allowed_ids(stepper: Callable[..., Stepper]) -> None:
    runner = stepper().runner
    starts = [
        RowStart(0, [5, 6, 7], 3, Sampling(seed=1)),
        RowStart(1, [5, 6, 7], 3, Sampling(seed=1, allowed_token_ids=[20, 30, 40])),
        RowStart(2, [5, 6, 7], 3, Sampling(seed=1)),
    ]
    work = [
        RowWork(0, 0, 3, 1, mask_of(9)),
        RowWork(1, 0, 3, 1, mask_of(30, 50)),
        RowWork(2, 0, 3, 1),
    ]
    first = runner.step(Plan(1, starts, [RowGrowth(row, 0, 0, [row]) for row in range(3)], work)).wait().token_ids
    assert first[:2] == [[9], [30]]
    second = runner.step(Plan(2, [], [], [RowWork(0, 3, 1, 1, mask_of(100)), RowWork(2, 3, 1, 1)])).wait().token_ids
    assert second[0] == [100]
    assert first[2] != [9]
