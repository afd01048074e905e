"""Which lines of a step are told to need what."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from streamserve.scheduling.plan import Plan, RowStart, RowWork
from streamserve.types import Sampling
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.rows.inputs import WorkUploader
from streamserve.worker.rows.rows import RankLimits, Rows
from streamserve.worker.sampling.sampler import SamplingUploader
from streamserve_kernels import SamplingTensors

VOCAB = 64


def parameters_of(*samplings: Sampling, num_prompt_tokens: int = 4, start: int = 5) -> SamplingTensors:
    """One sampled row for each."""
    device = CpuDevice()
    rows = Rows(device, RankLimits(max_num_seqs=8, max_model_len=64, block_size=16, vocab_size=VOCAB, group_of=(0,)))
    tokens = list(range(start + 1))
    rows.apply(Plan(1, [RowStart(row, tokens, num_prompt_tokens, one) for row, one in enumerate(samplings)], [], []))
    work = [RowWork(row, start, 1, 1) for row in range(len(samplings))]
    sent = WorkUploader(device, 8).send(work)
    return SamplingUploader(device, rows).send(work, sent.sample_rows, sent.places(rows.tables))


def test_rows_with_nothing_special_bring_nothing_along() -> None:
    p = parameters_of(*[Sampling(seed=1, temperature=0.0)] * 3)
    assert p.rows.tolist() == [0, 1, 2]
    assert p.positions.tolist() == [6, 6, 6]
    optional = (p.random, p.restricted, p.edits, p.bad_words, p.masks, p.penalties, p.logprobs)
    assert optional == (None,) * 7
    assert p.num_greedy == 3


def test_lines_are_sorted_by_how_they_choose() -> None:
    p = parameters_of(
        Sampling(seed=1, temperature=0.0, top_k=5),
        Sampling(seed=1),
        Sampling(seed=1, top_k=5),
        Sampling(seed=1, top_k=VOCAB, top_p=1.0),
        Sampling(seed=1, top_k=-1, temperature=1e-6, top_p=0.5),
        Sampling(seed=1, top_k=9, top_p=0.5),
    )
    assert p.random is not None
    assert p.restricted is not None
    assert (p.random.tolist(), p.restricted.tolist(), p.num_greedy) == ([1, 3], [2, 5], 2)
    assert p.max_top_k == 9
    assert p.tables.temperature[:6].tolist() == [0.0, 1.0, 1.0, 1.0, 0.0, 1.0]


def test_one_restricted_line_without_top_k_lifts_its_bound() -> None:
    assert parameters_of(Sampling(seed=1, top_k=5), Sampling(seed=1, min_p=0.1)).max_top_k == 0


def test_lists_go_up_for_their_lines_only() -> None:
    p = parameters_of(
        Sampling(seed=1, logit_bias={3: 0.5, 4: -1.0}, bad_words_token_ids=[[9], [1, 2, 3]]),
        Sampling(seed=1),
        Sampling(seed=1, min_tokens=3, stop_token_ids=[7]),
        Sampling(seed=1, bad_words_token_ids=[[8, 6]], repetition_penalty=1.1, logprobs=2),
    )
    assert p.edits is not None
    assert p.bad_words is not None
    assert p.penalties is not None
    assert p.logprobs is not None
    assert (p.edits.lines.tolist(), p.edits.firsts.tolist(), p.edits.counts.tolist()) == ([0, 2], [0, 3], [3, 1])
    assert p.edits.token_ids.tolist() == [3, 4, 9, 7]
    assert p.edits.values.tolist() == [0.5, -1.0, -np.inf, -np.inf]
    assert p.bad_words.lines.tolist() == [0, 3]
    assert p.bad_words.prefixes.tolist() == [[1, 2], [-1, 8]]
    assert p.bad_words.last.tolist() == [3, 6]
    assert (p.penalties.lines.tolist(), p.penalties.max_tokens) == ([3], 6)
    assert (p.logprobs.lines.tolist(), p.logprobs.num_top) == ([3], 2)


def test_what_the_sequences_of_a_request_share_goes_up_once() -> None:
    """49 000 biases of sixty sequences went up sixty times a step."""
    shared = Sampling(seed=1, logit_bias={3: 0.5, 4: -1.0}, allowed_token_ids=[3, 4])
    p = parameters_of(shared, msgspec.structs.replace(shared, seed=2), Sampling(seed=1, logit_bias={3: 0.5}))
    assert p.edits is not None
    assert (p.edits.lines.tolist(), p.edits.firsts.tolist(), p.edits.counts.tolist()) == ([0, 1, 2], [0, 0, 2], [2, 2, 1])
    assert (p.edits.token_ids.tolist(), p.edits.max_count) == ([3, 4, 3], 2)


@pytest.mark.parametrize(("start", "banned"), [(4, True), (5, True), (6, False)])
def test_min_tokens_counts_the_generated_tokens(start: int, banned: bool) -> None:
    p = parameters_of(Sampling(seed=1, min_tokens=3, stop_token_ids=[7]), start=start)
    assert (p.edits is not None) == banned


def test_a_seed_keeps_all_its_bits() -> None:
    seed = 0x1234_5678_9ABC_DEF0
    tables = parameters_of(Sampling(seed=seed)).tables
    words = np.array([int(tables.seed_low[0]), int(tables.seed_high[0])], dtype=np.int32)
    assert int(words.view("<u8")[0]) == seed
