"""From a plan to a model's inputs: which rows compute which positions, as numbers on the device.

Runs on the launch thread. Where a row that samples begins is counted back from the tokens it has, which the device knows; ids,
and the slots of the positions, are read from the rows on the device as well.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from streamserve.models.inputs import StepInputs
from streamserve.scheduling.plan import RowWork
from streamserve.worker.device.base import Device
from streamserve.worker.device.staging import Packing, StagingRing
from streamserve.worker.rows.rows import RankLimits
from streamserve_kernels import GatheredInputs, RowTables, gather_inputs


@dataclass(frozen=True, slots=True)
class DraftedLines:
    """Which lines of a step's logits belong to which row, where rows have drafts and therefore several.

    rows        [sampled rows]      int32
    line_start  [sampled rows + 1]  int32, prefix sums of their lines
    offsets     [lines]             int32, place of each line among those of its row
    most        the largest number of lines of a row
    """

    rows: Tensor
    line_start: Tensor
    offsets: Tensor
    most: int


@dataclass(frozen=True, slots=True)
class StepWork:
    """The step's work on the device, and what the host knows of it.

    items          what was sent, padding included
    rows, starts   [sequences]      int32; starts below 0 count back from the tokens that the row has
    query_start    [sequences + 1]  int32
    sample_tokens  [lines]          int32, index among the step's tokens of each one that is sampled behind
    sample_rows    [lines]          int32
    drafted        set where a row has more than one line
    """

    items: list[RowWork]
    rows: Tensor
    starts: Tensor
    query_start: Tensor
    sample_tokens: Tensor
    sample_rows: Tensor
    drafted: DraftedLines | None
    num_tokens: int
    num_decodes: int
    max_seq_len: int

    def places(self, tables: RowTables) -> Tensor:
        """[lines] int32, the place in its row that each sampled token takes if all drafts before it are accepted."""
        places = tables.num_tokens.index_select(0, self.sample_rows)
        return places if self.drafted is None else places + self.drafted.offsets


class WorkUploader:
    """Sends each step's work to the same place on the device, which is what a captured graph reads.

    Rows that decode begin at their last token, wherever it is: the next step of the same rows is the same work, and needs no
    upload. Steps with drafts, of which a row may have any number, are sent elsewhere: captures don't read them.
    """

    def __init__(self, device: Device, max_sequences: int) -> None:
        """max_sequences  of one step, padding included"""
        capacity = 5 * max_sequences + 1
        self._words = device.buffer(capacity)
        self._ring = StagingRing(device, capacity)

    def send(self, work: list[RowWork]) -> StepWork:
        """Queue the upload of a step's work; `work` has its one-token rows first."""
        counts = [item.count for item in work]
        ends = _running_sums(counts)
        sampled = [(item, end) for item, end in zip(work, ends[1:], strict=True) if item.num_sampled]
        packing = Packing()
        # What captures read comes first: its places must depend on the number of sequences alone.
        query_start = packing.put(ends)
        rows = packing.put([item.row for item in work])
        starts = packing.put([item.num_sampled - 1 - item.count if item.num_sampled else item.start for item in work])
        sample_tokens = packing.put([token for item, end in sampled for token in range(end - item.num_sampled, end)])
        sample_rows = packing.put([item.row for item, _ in sampled for _ in range(item.num_sampled)])
        drafted = _pack_drafted([item for item, _ in sampled], packing)
        words = self._ring.send(packing, self._words if drafted is None else None)
        return StepWork(
            items=work,
            rows=words[rows],
            starts=words[starts],
            query_start=words[query_start],
            sample_tokens=words[sample_tokens],
            sample_rows=words[sample_rows],
            drafted=None if drafted is None else drafted(words),
            num_tokens=ends[-1],
            num_decodes=next((index for index, count in enumerate(counts) if count != 1), len(counts)),
            max_seq_len=max(item.start + item.count for item in work),
        )


def gather(tables: RowTables, work: StepWork, limits: RankLimits) -> StepInputs:
    """The model's inputs, read from the rows."""
    gathered = gather_inputs(
        tables, work.rows, work.starts, work.query_start, num_tokens=work.num_tokens, block_size=limits.block_size
    )
    return step_inputs(gathered, work.query_start, limits.group_of, num_decodes=work.num_decodes, max_seq_len=work.max_seq_len)


def step_inputs(
    gathered: GatheredInputs, query_start: Tensor, group_of: tuple[int, ...], *, num_decodes: int, max_seq_len: int
) -> StepInputs:
    """What was gathered, with each layer given what is its group's."""
    slot_mapping, block_tables = gathered.slot_mapping.unbind(), gathered.block_tables.unbind()
    return StepInputs(
        token_ids=gathered.token_ids,
        positions=gathered.positions,
        slot_mapping=[slot_mapping[group] for group in group_of],
        block_tables=[block_tables[group] for group in group_of],
        seq_lens=gathered.seq_lens,
        query_start=query_start,
        num_decodes=num_decodes,
        max_seq_len=max_seq_len,
    )


def _pack_drafted(sampled: list[RowWork], packing: Packing) -> Callable[[Tensor], DraftedLines] | None:
    """Put what `DraftedLines` holds among the step's words; returns how to view it there. None when no row has drafts."""
    lines = [item.num_sampled for item in sampled]
    most = max(lines, default=0)
    if most <= 1:
        return None
    rows, line_start = packing.put([item.row for item in sampled]), packing.put(_running_sums(lines))
    offsets = packing.put([offset for count in lines for offset in range(count)])
    return lambda words: DraftedLines(words[rows], words[line_start], words[offsets], most)


def _running_sums(counts: list[int]) -> list[int]:
    sums = [0]
    for count in counts:
        sums.append(sums[-1] + count)
    return sums
