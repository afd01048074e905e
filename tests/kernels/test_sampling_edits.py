"""What happens to logits before a token is chosen, against the formulas in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from streamserve_kernels import BadWords, LogitEdits, Penalties, RowTables, SamplingTensors, TokenMasks
from streamserve_kernels.reference.logit_edits import edit_logits
from tests.support.sampling import int32, make_tables, penalised

VOCAB = 100


def random_logits(lines: int) -> torch.Tensor:
    return torch.randn(lines, VOCAB, generator=torch.Generator().manual_seed(3))


def write_tokens(tables: RowTables, row: int, prompt: list[int], output: list[int]) -> int:
    """Fill a row; what lies behind its tokens is left over from a former owner. Returns how many tokens it has."""
    tables.token_ids[row] = 13
    tokens = prompt + output
    tables.token_ids[row, : len(tokens)] = int32(*tokens)
    tables.num_prompt_tokens[row] = len(prompt)
    return len(tokens)


def test_without_edits_the_logits_are_the_very_same_tensor() -> None:
    logits = random_logits(2)
    assert edit_logits(logits, SamplingTensors(make_tables(2), int32(0, 1), int32(3, 3))) is logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_penalties_count_prompt_and_output_as_their_formulas_say(dtype: torch.dtype) -> None:
    repetition, frequency, presence = [1.3, 0.8, 1.0], [0.5, 0.0, -0.2], [0.25, 1.5, 0.0]
    tables = make_tables(
        4, repetition_penalty=[1.0, *repetition], frequency_penalty=[0.0, *frequency], presence_penalty=[0.0, *presence]
    )
    texts = [([1, 2, 3, 2], [2, 9, 9, 9]), ([5], [5]), ([7, 7, 8], [])]
    lengths = [write_tokens(tables, row, *text) for row, text in enumerate(texts, start=1)]
    logits = random_logits(4).to(dtype)
    penalties = Penalties(int32(1, 2, 3), max(lengths))
    edited = edit_logits(logits, SamplingTensors(tables, int32(0, 1, 2, 3), int32(1, *lengths), penalties=penalties))
    assert edited.dtype == torch.float32
    assert torch.equal(edited[0], logits[0].float())
    for line, text in enumerate(texts, start=1):
        expected = penalised(
            logits[line].double().numpy(), *text, repetition[line - 1], frequency[line - 1], presence[line - 1]
        )
        np.testing.assert_allclose(edited[line].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_penalties_see_the_token_in_flight_and_not_what_lies_behind_it() -> None:
    tables = make_tables(1, presence_penalty=[1.0])
    write_tokens(tables, 0, [1], [4])
    logits = torch.zeros(1, VOCAB)
    for num_tokens, seen in ((1, set()), (2, {4}), (3, {4, 13})):
        parameters = SamplingTensors(tables, int32(0), int32(num_tokens), penalties=Penalties(int32(0), num_tokens))
        assert set(edit_logits(logits, parameters)[0].nonzero().flatten().tolist()) == seen


def test_masks_leave_only_their_tokens() -> None:
    logits = random_logits(3)
    bits = np.zeros((2, 4), dtype=np.uint32)
    for mask, tokens in enumerate(([0, 31, 32, 99], [64])):
        for token in tokens:
            bits[mask, token // 32] |= np.uint32(1 << token % 32)
    masks = TokenMasks(int32(2, 0), torch.from_numpy(bits.view(np.int32)))
    edited = edit_logits(logits, SamplingTensors(make_tables(3), int32(0, 1, 2), int32(1, 1, 1), masks=masks))
    assert torch.isfinite(edited[2]).nonzero().flatten().tolist() == [0, 31, 32, 99]
    assert torch.isfinite(edited[0]).nonzero().flatten().tolist() == [64]
    assert torch.equal(edited[1], logits[1])
    assert edited[2, 31] == logits[2, 31]


def test_biases_add_up_and_bans_win() -> None:
    logits = random_logits(2)
    edits = LogitEdits(int32(0, 1), int32(0, 1), int32(1, 2), int32(5, 5, 5), torch.tensor([2.5, 7.0, -math.inf]), 2)
    edited = edit_logits(logits, SamplingTensors(make_tables(2), int32(0, 1), int32(1, 1), edits=edits))
    assert edited[0, 5] == logits[0, 5] + 2.5
    assert edited[1, 5] == -math.inf
    assert int((edited != logits).sum()) == 2


@pytest.mark.parametrize(
    ("prompt", "output", "banned"),
    [
        ([1], [7, 8], {9}),
        ([1], [6, 7, 8], {9, 20}),
        ([1], [8, 7], set()),
        ([7, 8], [], set()),
        ([1, 7], [8], {30}),
        ([1], [8], {30}),
        ([], [], set()),
    ],
)
def test_a_bad_word_is_cut_off_before_its_last_token(prompt: list[int], output: list[int], banned: set[int]) -> None:
    """7 8 9, 6 7 8 20 and 8 30 are bad; only generated tokens count."""
    tables = make_tables(2)
    num_tokens = write_tokens(tables, 1, prompt, output)
    words = BadWords(int32(1, 1, 1), torch.tensor([[-1, 7, 8], [6, 7, 8], [-1, -1, 8]], dtype=torch.int32), int32(9, 20, 30))
    edited = edit_logits(torch.zeros(2, VOCAB), SamplingTensors(tables, int32(0, 1), int32(0, num_tokens), bad_words=words))
    expected = banned | ({30} if output[-1:] == [8] else set())
    assert set((edited[1] == -math.inf).nonzero().flatten().tolist()) == expected
    assert torch.isfinite(edited[0]).all()
