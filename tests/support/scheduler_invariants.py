"""What must hold between any two calls of a scheduler."""

from __future__ import annotations

from collections import Counter

from streamserve.scheduling.kv.prefix_cache import PrefixBlock
from streamserve.scheduling.scheduler import Scheduler
from streamserve.scheduling.sequence import Sequence
from streamserve.scheduling.sequence_registry import SequenceRegistry


def check_invariants(scheduler: Scheduler, *, most_drafts: int = 0) -> None:
    """Assert that sequences, rows, blocks and the prefix cache agree. O(everything).

    most_drafts  of one sequence that may have been rejected while steps were outstanding: their blocks are kept
    """
    _check_homes(scheduler.registry)
    scheduler.registry.rows.check()
    for sequence in scheduler.registry.sequences.values():
        _check_progress(scheduler, sequence)
        _check_memory(scheduler, sequence, most_drafts)
    _check_blocks(scheduler)


def _check_homes(registry: SequenceRegistry) -> None:
    """Every live sequence is in exactly one place, the one that its state says."""
    rows = registry.rows
    queues = (rows.running, rows.paused)
    for queue in (*queues, *(share.waiting for share in registry.tenants)):
        orders = [sequence.order for sequence in queue]
        assert orders == sorted(set(orders)), "a queue is out of order"
    housed = [sequence for queue in queues for sequence in queue] + [*registry.waiting, *registry.parked.values()]
    assert Counter(map(id, housed)) == Counter(map(id, registry.sequences.values())), "a sequence is lost or in two places"
    assert all(not s.is_resident and not s.is_paused for s in registry.waiting), "a waiting sequence has a row or is paused"
    assert all(not s.is_resident and s.is_paused for s in registry.parked.values()), "a parked sequence has a row or may run"
    assert all(s.is_resident for queue in queues for s in queue), "a resident has no row"
    assert len(list(registry.waiting)) == len(registry.waiting), "those that wait are miscounted"
    _check_tenants(registry)


def _check_tenants(registry: SequenceRegistry) -> None:
    """Every tenant is counted what is its own, and none is there without a sequence."""
    live = Counter(sequence.tenant for sequence in registry.sequences.values())
    rows = Counter(sequence.tenant for sequence in registry.sequences.values() if sequence.is_resident)
    for share in registry.tenants:
        name = share.tenant.name
        assert (share.num_live, share.num_rows) == (live.pop(name), rows[name]), f"what tenant {name!r} holds is miscounted"
        assert all(sequence.tenant == name for sequence in share.waiting), "a sequence waits among another tenant's"
    assert not live, "a tenant with sequences has no share"


def _check_progress(scheduler: Scheduler, sequence: Sequence) -> None:
    name, length = sequence.sequence_id, len(sequence.token_ids)
    assert sequence.finish_reason is None, f"{name} has ended and lives"
    assert sequence.token_ids[: sequence.num_prompt_tokens] == sequence.spec.prompt_token_ids, f"{name}: its prompt changed"
    assert length < sequence.limit, f"{name} outlived its limit"
    assert sequence.num_known <= sequence.limit, f"{name} samples past its limit"
    most_in_flight = scheduler.num_in_flight + sequence.num_drafted
    assert 0 <= sequence.num_in_flight <= most_in_flight, f"{name} has more tokens in flight than steps and drafts"
    assert 0 <= sequence.num_drafted <= sequence.num_in_flight, f"{name} has drafts in flight that are no tokens"
    is_limited = sequence.constraint is not None or sequence.reasoning is not None
    needs_look = is_limited or sequence.spec.pooling is not None or bool(sequence.drafts) or sequence.num_drafted > 0
    assert sequence.is_special == needs_look, f"{name} is planned as something that it is not"
    assert sequence.num_in_flight == 0 or sequence.last_step > scheduler.last_committed_step, f"{name}: a token got lost"
    # Of what is pooled, the last token is computed before it ends.
    most_computed = sequence.num_known - (sequence.spec.pooling is None)
    assert sequence.num_computed <= most_computed, f"{name} is computed beyond what is known"
    if sequence.constraint is not None:
        assert sequence.num_in_flight <= 1, f"{name} was planned without knowing what its constraint allows"


def _check_memory(scheduler: Scheduler, sequence: Sequence, most_drafts: int) -> None:
    """No block more and no block less than its tokens need."""
    name = sequence.sequence_id
    if not sequence.is_resident:
        assert not sequence.tables, f"{name} holds blocks without a row"
        assert sequence.num_computed == 0, f"{name} is computed nowhere"
        return
    groups = scheduler.limits.groups
    assert len(sequence.tables) == len(groups.windows), f"{name} lacks a block table"
    block_ids = [block_id for table in sequence.tables for block_id in table.block_ids]
    assert len(set(block_ids)) == len(block_ids), f"{name} holds a block twice"
    size = groups.block_size
    assert sequence.reach == min(table.end for table in sequence.tables) * size, f"{name}: its reach is not that of its blocks"
    assert sequence.num_computed <= sequence.reach, f"{name} writes past its blocks"
    for window, table in zip(groups.windows, sequence.tables, strict=True):
        most_tokens = max(sequence.num_computed, len(sequence.token_ids)) + most_drafts
        assert (table.end - 1) * size < most_tokens, f"{name} holds a block for nothing"
        if window is None:
            assert table.first == 0, f"{name} gave back a block where all are seen"
            continue
        assert table.first * size <= max(0, sequence.num_computed - window + 1), f"{name} gave back a block that is still seen"
        committed = sequence.next_full - size
        assert table.first >= (committed - window + 1) // size, f"{name} keeps a block that nothing sees"


def _check_blocks(scheduler: Scheduler) -> None:
    kv, sequences = scheduler.registry.kv, scheduler.registry.sequences.values()
    tables = [table for sequence in sequences for table in sequence.tables]
    kv.pool.check(Counter(block_id for table in tables for block_id in table.block_ids))
    kv.cache.check(kv.pool.kept)
    for sequence in sequences:
        _check_cached_blocks(scheduler, sequence)


def _check_cached_blocks(scheduler: Scheduler, sequence: Sequence) -> None:
    """What the cache says of a sequence's blocks is true, and says nothing of tokens not committed."""
    cache, size = scheduler.registry.kv.cache, scheduler.limits.block_size
    truth: list[PrefixBlock] = []
    cache.extend(truth, sequence.token_ids, len(sequence.token_ids) // size, sequence.spec.cache_salt)
    for group, table in enumerate(sequence.tables):
        for index, block_id in enumerate(table.block_ids, table.first):
            believed = cache.contents(block_id)
            if believed is not None:
                # The newest token was sampled and not computed, so a block that ends with it is not full yet.
                is_computed = (index + 1) * size < len(sequence.token_ids)
                assert is_computed, f"{sequence.sequence_id}: block {index} is cached and not committed"
                assert believed == (group, truth[index]), (
                    f"{sequence.sequence_id}: block {index} of group {group} holds other tokens than the cache says"
                )
