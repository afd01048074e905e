"""Updates of rows, and the inputs of a step that are read from them, on the device of the rows."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference import rows as reference
from streamserve_kernels.reference.rows import GatheredInputs
from streamserve_kernels.rows.tables import RowTables


def apply_row_deltas(tables: RowTables, segments: Tensor, payload: Tensor) -> None:
    """Copy runs of words into rows; see `reference.rows`."""
    area = reference if segments.is_cpu else triton_area("rows.updates")
    area.apply_row_deltas(tables, segments, payload)


def gather_inputs(
    tables: RowTables, rows: Tensor, starts: Tensor, query_start: Tensor, *, num_tokens: int, block_size: int
) -> GatheredInputs:
    """Read the model inputs of a step from the rows; see `reference.rows`."""
    area = reference if rows.is_cpu else triton_area("rows.updates")
    inputs: GatheredInputs = area.gather_inputs(tables, rows, starts, query_start, num_tokens=num_tokens, block_size=block_size)
    return inputs


def scatter_sampled(tables: RowTables, rows: Tensor, positions: Tensor, token_ids: Tensor) -> None:
    """Write sampled ids into their rows; see `reference.rows`."""
    area = reference if rows.is_cpu else triton_area("rows.updates")
    area.scatter_sampled(tables, rows, positions, token_ids)


def accept_drafts(tables: RowTables, rows: Tensor, line_start: Tensor, token_ids: Tensor, *, most: int) -> Tensor:
    """Write sampled ids into rows with drafts, as far as those agree; see `reference.rows`."""
    area = reference if rows.is_cpu else triton_area("rows.updates")
    accepted: Tensor = area.accept_drafts(tables, rows, line_start, token_ids, most=most)
    return accepted
