"""Sampling in Triton chooses the reference's tokens: greedy, random, restricted, edited, and whoever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamserve_kernels.reference import sampling as reference
from streamserve_kernels.rows.tables import RowTables, make_row_tables
from streamserve_kernels.sampling.tensors import (
    NO_TOKEN,
    BadWords,
    LogitEdits,
    LogprobRequest,
    Penalties,
    SamplingTensors,
    TokenMasks,
)
from tests.support.kernel_cases import DEVICE, DTYPES, triton_area

sampling = triton_area("sampling.choice")
LINES, VOCAB = 7, 700
GREEDY, RANDOM, RESTRICTED = [0, 6], [1], [2, 3, 4, 5]


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


@pytest.fixture
def tables() -> RowTables:
    tables = make_row_tables(LINES - 1, 50, 4, DEVICE)
    tables.state.copy_(torch.randint(0, 60, tables.state.shape, dtype=torch.int32))
    columns: dict[Tensor, list[float]] = {
        tables.temperature: [0.0, 0.7, 1.0, 1.3, 0.5, 0.9, 0.0],
        tables.top_p: [1.0, 1.0, 1.0, 0.5, 0.8, 1.0, 1.0],
        tables.min_p: [0.0, 0.0, 0.0, 0.0, 0.0, 0.2, 0.0],
        tables.top_k: [0, 0, 5, 0, 10, 0, 0],
        tables.repetition_penalty: [1.3] * LINES,
        tables.presence_penalty: [0.3] * LINES,
        tables.frequency_penalty: [0.2] * LINES,
        tables.num_prompt_tokens: [3] * LINES,
    }
    for column, values in columns.items():
        column.copy_(torch.tensor(values))
    tables.seed_low.copy_(torch.randint(-(2**31), 2**31 - 1, (LINES,), dtype=torch.int32))
    return tables


def parameters(tables: RowTables, **special: object) -> SamplingTensors:
    return SamplingTensors(
        tables,
        torch.arange(LINES, dtype=torch.int32, device=DEVICE),
        torch.randint(5, 50, (LINES,), dtype=torch.int32).to(DEVICE),
        random=ints(*RANDOM),
        restricted=ints(*RESTRICTED),
        **special,  # type: ignore[arg-type]
    )


def logits(dtype: torch.dtype) -> Tensor:
    return (torch.randn(LINES, VOCAB, device=DEVICE) * 3).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_plain_and_restricted_lines_take_the_references_tokens(tables: RowTables, dtype: torch.dtype) -> None:
    for _ in range(4):
        values, p = logits(dtype), parameters(tables)
        assert torch.equal(sampling.sample(values, p).token_ids, reference.sample(values, p).token_ids)


@pytest.mark.parametrize("spread", [0.01, 3.0], ids=["flat", "peaked"])
def test_a_large_vocabulary_is_restricted_as_in_the_reference(tables: RowTables, spread: float) -> None:
    """Flat logits keep more tokens than are looked into first; peaked ones don't."""
    values, p = torch.randn(LINES, 20000, device=DEVICE) * spread, parameters(tables)
    assert torch.equal(sampling.sample(values, p).token_ids, reference.sample(values, p).token_ids)


def test_edited_lines_take_the_references_tokens(tables: RowTables) -> None:
    values = logits(torch.float32)
    p = parameters(tables)
    last = int(tables.token_ids[0, int(p.positions[0]) - 1])
    p = parameters(
        tables,
        edits=LogitEdits(
            ints(0, 1, 3, 4),
            ints(0, 1, 3, 1),
            ints(1, 2, 1, 2),
            ints(5, 6, 6, 9),
            torch.tensor([9.0, 1.0, 2.0, -torch.inf], device=DEVICE),
            2,
        ),
        masks=TokenMasks(ints(2, 5), torch.randint(-(2**31), 2**31 - 1, (2, -(-VOCAB // 32)), dtype=torch.int32).to(DEVICE)),
        bad_words=BadWords(ints(0, 3), ints(-1, last, 3, 4).view(2, 2), ints(int(values[0].argmax()), 8)),
        penalties=Penalties(ints(1, 4), 50),
        logprobs=LogprobRequest(ints(1, 2), 3),
    )
    actual, expected = sampling.sample(values, p), reference.sample(values, p)
    assert torch.equal(actual.token_ids, expected.token_ids)
    assert actual.logprobs is not None
    assert expected.logprobs is not None
    assert torch.equal(actual.logprobs.top_ids, expected.logprobs.top_ids)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # inf - inf, in the interpreter's numpy
@pytest.mark.parametrize("fault", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("everywhere", [True, False])
def test_lines_that_nothing_can_be_sampled_from_get_no_token_and_others_theirs(
    tables: RowTables, fault: float, everywhere: bool
) -> None:
    """A row whose logits were all NaN, or all banned, got token 0 and a 200."""
    values, p = logits(torch.float32), parameters(tables)
    sound = reference.sample(values, p).token_ids
    for line in (0, 1, 4):
        values[line, slice(None) if everywhere else VOCAB // 2] = fault
    actual = sampling.sample(values, p).token_ids
    assert torch.equal(actual, reference.sample(values, p).token_ids)
    failed = [0, 1, 4] if everywhere or fault != -torch.inf else []
    assert (actual == NO_TOKEN).nonzero().flatten().tolist() == failed
    assert torch.equal(actual[[2, 3, 5, 6]], sound[[2, 3, 5, 6]])


def test_a_bad_word_is_banned_only_after_its_prefix(tables: RowTables) -> None:
    values, p = logits(torch.float32), parameters(tables)
    best, before = int(values[0].argmax()), int(tables.token_ids[0, int(p.positions[0]) - 1])

    def chosen(prefix: int) -> int:
        words = BadWords(ints(0), ints(prefix).view(1, 1), ints(best))
        q = SamplingTensors(tables, p.rows, p.positions, random=p.random, restricted=p.restricted, bad_words=words)
        return int(sampling.sample(values, q).token_ids[0])

    assert chosen(before) != best
    assert chosen(before + 1) == best


def test_a_line_does_not_depend_on_its_batch_mates(tables: RowTables) -> None:
    values, p = logits(torch.float32), parameters(tables)
    together = sampling.sample(values, p).token_ids
    for line in range(LINES):
        alone = SamplingTensors(
            tables,
            p.rows[line : line + 1],
            p.positions[line : line + 1],
            random=ints(0) if line in RANDOM else None,
            restricted=ints(0) if line in RESTRICTED else None,
        )
        assert torch.equal(sampling.sample(values[line : line + 1], alone).token_ids, together[line : line + 1])
