"""Row updates and gathering in Triton give exactly what the reference gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamserve_kernels.reference import rows as reference
from streamserve_kernels.rows.tables import BEHIND_TOKENS, PADDING_TOKENS, RowTables, make_row_tables
from streamserve_kernels.sampling.tensors import NO_TOKEN
from tests.support.kernel_cases import DEVICE, triton_area

rows = triton_area("rows.updates")
ROWS, MAX_LEN, BLOCK = 6, 50, 16


@pytest.fixture(params=[1, 3], ids=["one layer group", "three layer groups"])
def tables(request: pytest.FixtureRequest) -> RowTables:
    tables = make_row_tables(ROWS, MAX_LEN, 4, DEVICE, num_groups=request.param)
    tables.state.copy_(torch.randint(0, 60, tables.state.shape, dtype=torch.int32))
    tables.num_tokens.copy_(torch.randint(21, 40, tables.num_tokens.shape))
    tables.num_tokens[tables.padding_row] = PADDING_TOKENS
    return tables


def ints(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def test_deltas_reach_their_rows_and_nothing_else(tables: RowTables) -> None:
    before = tables.state.clone()
    segments, payload = (
        ints(1, 3, 0, 9, 4, 0, 9, 30, 2, BEHIND_TOKENS, 3, 5).view(3, 4),
        torch.arange(39, dtype=torch.int32, device=DEVICE),
    )
    rows.apply_row_deltas(tables, segments, payload)
    after = tables.state.clone()
    tables.state.copy_(before)
    reference.apply_row_deltas(tables, segments, payload)
    assert torch.equal(after, tables.state)
    assert not torch.equal(after, before)


@pytest.mark.parametrize("counts", [[1, 1, 1], [1, 7, 20], [1, 2, 0]], ids=["decoding", "mixed", "one of none"])
def test_gathered_inputs_equal_the_reference(tables: RowTables, counts: list[int]) -> None:
    chosen, starts = ints(0, 2, tables.padding_row), ints(-1, 9, 0)
    query_start = ints(0, *torch.tensor(counts).cumsum(0).tolist())
    sizes = {"num_tokens": sum(counts), "block_size": BLOCK}
    actual = rows.gather_inputs(tables, chosen, starts, query_start, **sizes)
    expected = reference.gather_inputs(tables, chosen, starts, query_start, **sizes)
    for name, mine, theirs in zip(expected._fields, actual, expected, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape), name
        if name == "block_tables":
            used = torch.arange(mine.shape[2], device=DEVICE) * BLOCK < expected.seq_lens.unsqueeze(1)
            mine, theirs = mine[:, used], theirs[:, used]
        assert torch.equal(mine, theirs), name


def test_sampled_ids_land_where_the_next_step_looks(tables: RowTables) -> None:
    before = tables.state.clone()
    arguments = ints(1, 3, tables.padding_row), ints(7, 50, 1), torch.tensor([99, NO_TOKEN, 97], device=DEVICE)
    rows.scatter_sampled(tables, *arguments)
    after = tables.state.clone()
    tables.state.copy_(before)
    reference.scatter_sampled(tables, *arguments)
    assert torch.equal(after, tables.state)
    assert tables.token_ids[3, 50] == 0, "the next step reads an embedding"


@pytest.mark.parametrize("num_agreeing", [0, 1, 2, 3])
def test_accepted_drafts_equal_the_reference(tables: RowTables, num_agreeing: int) -> None:
    chosen, line_start = ints(4, 0, 3), ints(0, 4, 5, 7)
    sampled = torch.randint(100, 200, (7,), device=DEVICE)
    sampled[num_agreeing] = NO_TOKEN
    length = int(tables.num_tokens[4])
    tables.token_ids[4, length : length + num_agreeing] = sampled[:num_agreeing].int()
    before = tables.state.clone()
    accepted = rows.accept_drafts(tables, chosen, line_start, sampled, most=4)
    after = tables.state.clone()
    tables.state.copy_(before)
    expected = reference.accept_drafts(tables, chosen, line_start, sampled, most=4)
    assert accepted.tolist() == expected.tolist() == [num_agreeing + 1, 1, 1]
    assert torch.equal(after, tables.state)
    assert tables.token_ids[4, length + num_agreeing] == 0
