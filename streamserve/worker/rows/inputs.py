"""From a plan to a model's inputs: which rows compute which positions, as numbers on the device.

Runs on the launch thread. The host knows where each row stands; the ids, and the slots behind the positions, are read from the
rows on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from streamserve.models.inputs import StepInputs
from streamserve.scheduling.plan import RowWork
from streamserve.worker.device.base import Device
from streamserve.worker.device.staging import Packing, StagingRing
from streamserve.worker.rows.rows import RankLimits
from streamserve_kernels import GatheredInputs, RowTables, gather_inputs


@dataclass(frozen=True, slots=True)
class StepWork:
    """The step's work on the device, and what the host knows of it.

    items           what was sent, padding included
    rows, starts    [sequences]      int32, as in `RowWork`
    query_start     [sequences + 1]  int32
    sample_tokens   [lines]          int32, index of each sampled row's last token in this step
    sample_rows     [lines]          int32
    positions       [lines]          int32, the place each sampled token takes in its row
    places          [sequences + lines]  int32, starts and positions one after the other, as one view
    moves           [2 * sequences]  int32, how far both go on after a decode step: one token, and padding stays
    """

    items: list[RowWork]
    rows: Tensor
    starts: Tensor
    query_start: Tensor
    sample_tokens: Tensor
    sample_rows: Tensor
    positions: Tensor
    places: Tensor
    moves: Tensor
    num_tokens: int
    num_decodes: int
    max_seq_len: int

    def advance(self) -> None:
        """After a step that decodes, in the stream's order: the same rows, one token on."""
        self.places.add_(self.moves)


class WorkUploader:
    """Sends each step's work to the same place on the device, which is what a captured graph reads.

    A captured decode step moves its rows on by one token (`advance`), so that the next one, of the same rows, needs no upload.
    """

    def __init__(self, device: Device, max_sequences: int) -> None:
        """max_sequences  of one step, padding included"""
        capacity = 8 * max_sequences + 1
        self._words = device.buffer(capacity)
        self._ring = StagingRing(device, capacity)

    def send(self, work: list[RowWork], *, padding: int = 0) -> StepWork:
        """Queue the upload of a step's work; `work` has its one-token rows first, and ends with so many rows of padding."""
        counts = [item.count for item in work]
        ends = _running_sums(counts)
        sampled = [(item, end - 1) for item, end in zip(work, ends[1:], strict=True) if item.samples]
        packing = Packing()
        # What captures read comes first: its places must depend on the number of sequences alone.
        query_start = packing.put(ends)
        rows = packing.put([item.row for item in work])
        starts = packing.put([item.start for item in work])
        positions = packing.put([item.start + item.count for item, _ in sampled])
        sample_tokens = packing.put([last for _, last in sampled])
        sample_rows = packing.put([item.row for item, _ in sampled])
        moves = packing.put(([1] * (len(work) - padding) + [0] * padding) * 2)
        words = self._ring.send(packing, self._words)
        return StepWork(
            items=work,
            rows=words[rows],
            starts=words[starts],
            query_start=words[query_start],
            sample_tokens=words[sample_tokens],
            sample_rows=words[sample_rows],
            positions=words[positions],
            places=words[starts.start : positions.stop],
            moves=words[moves],
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


def _running_sums(counts: list[int]) -> list[int]:
    sums = [0]
    for count in counts:
        sums.append(sums[-1] + count)
    return sums
