"""Steps, rows and blocks are divided between tenants, and whoever is alone has all."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamserve.scheduling.plan import Plan
from streamserve.types import SequenceSpec, Tenant
from tests.scheduling.oracle import expected
from tests.scheduling.play import Play, spec
from tests.support.scheduler_invariants import check_invariants

GREEDY, POLITE = Tenant(name="greedy"), Tenant(name="polite")


def resident(play: Play, tenant: Tenant) -> list[str]:
    sequences = play.scheduler.registry.sequences.items()
    return [name for name, sequence in sequences if sequence.is_resident and sequence.tenant == tenant.name]


def tokens_of(play: Play, plan: Plan) -> Counter[str]:
    """Tokens that a step computes of each tenant's sequences."""
    owners = {sequence.row: sequence.tenant for sequence in play.scheduler.registry.running}
    spent = Counter[str]()
    for work in plan.work:
        spent[owners[work.row]] += work.count
    return spent


def many(tenant: Tenant, count: int, prompt: int = 100, max_tokens: int = 8) -> list[SequenceSpec]:
    return [spec(f"{tenant.name}{index}", prompt, max_tokens=max_tokens, tenant=tenant) for index in range(count)]


def test_a_short_prompt_does_not_wait_for_another_tenants_thousands_of_tokens() -> None:
    """One request of 31 prompts with n=128 kept another key's first token waiting for more than 100 s."""
    play = Play(num_blocks=4096, max_num_seqs=256, max_num_batched_tokens=256)
    play.add(*many(GREEDY, 200))
    play.step()
    play.add(spec("short", 20, tenant=POLITE))
    assert "short" in play.step()


def test_one_tenants_long_prompt_under_way_leaves_room_for_anothers() -> None:
    play = Play(num_blocks=4096, max_model_len=4096, max_num_batched_tokens=512)
    play.add(spec("long", 4000, tenant=GREEDY))
    play.step()
    play.add(spec("short", 20, tenant=POLITE))
    plan = play.submit()
    assert plan is not None
    assert tokens_of(play, plan) == {"greedy": 492, "polite": 20}
    play.commit()


def test_among_a_tenants_own_requests_priorities_decide_and_beyond_they_mean_nothing() -> None:
    play = Play(num_blocks=4096, max_num_seqs=1, policy="priority")
    play.add(spec("first", tenant=GREEDY))
    play.step()
    play.add(*(spec(f"greedy{priority}", priority=priority, tenant=GREEDY) for priority in (0, -5, -9)))
    play.add(spec("low", priority=8, tenant=POLITE), spec("high", priority=7, tenant=POLITE))
    order: list[str] = []
    while play.scheduler.has_runnable:
        play.step()
        order += [name for tenant in (GREEDY, POLITE) for name in resident(play, tenant) if name not in order]
    assert [name for name in order if name.startswith("greedy")] == ["greedy-9", "greedy-5", "greedy0"]
    assert order.index("high") < order.index("low")
    assert order.index("high") < order.index("greedy-5")


def test_a_tenant_that_holds_every_row_yields_some_and_gets_them_back() -> None:
    play = Play(num_blocks=256, max_num_seqs=4)
    play.add(*many(GREEDY, 8, prompt=6, max_tokens=30))
    for _ in range(3):
        play.step()
    assert len(resident(play, GREEDY)) == 4
    play.add(*many(POLITE, 4, prompt=6, max_tokens=10))
    for _ in range(6):
        play.step()
    assert (len(resident(play, GREEDY)), len(resident(play, POLITE))) == (2, 2)
    assert play.scheduler.stats().num_preemptions == 2
    play.finish()
    for each in (*many(GREEDY, 8, prompt=6, max_tokens=30), *many(POLITE, 4, prompt=6, max_tokens=10)):
        assert play.tokens(each.sequence_id) == expected(each)[0]
    assert play.scheduler.stats().num_preemptions == 2


def test_rows_are_yielded_to_no_more_than_the_share_of_a_tenants_weight() -> None:
    heavy = Tenant(name="heavy", weight=3.0)
    play = Play(num_blocks=256, max_num_seqs=8)
    play.add(*many(POLITE, 12, prompt=6, max_tokens=60))
    play.step()
    play.add(*many(heavy, 12, prompt=6, max_tokens=60))
    for _ in range(20):
        play.step()
    assert (len(resident(play, POLITE)), len(resident(play, heavy))) == (2, 6)


def test_a_tenant_that_holds_all_blocks_yields_what_is_beyond_its_share() -> None:
    play = Play(num_blocks=20, max_num_seqs=8)
    play.add(*many(GREEDY, 4, prompt=16, max_tokens=5))
    play.step()
    assert len(resident(play, GREEDY)) == 4
    play.add(spec("polite", 16, max_tokens=5, tenant=POLITE))
    play.step()
    play.step()
    assert resident(play, POLITE) == ["polite"]
    play.finish()


def test_when_memory_runs_out_it_is_the_tenant_with_the_most_that_yields() -> None:
    play = Play(num_blocks=12, max_num_seqs=8)
    play.add(*many(GREEDY, 3, prompt=11, max_tokens=20), spec("polite", 6, max_tokens=20, tenant=POLITE))
    for _ in range(2):
        play.step()
    for _ in range(6):
        assert resident(play, POLITE) == ["polite"]
        play.step()
    assert play.scheduler.stats().num_preemptions > 0


def test_a_tenant_that_was_alone_owes_nothing() -> None:
    play = Play(num_blocks=4096, max_model_len=4096, max_num_batched_tokens=512, max_num_seqs=64)
    play.add(*many(GREEDY, 40))
    for _ in range(4):
        play.step()
    play.add(*many(POLITE, 40))
    plan = play.submit()
    assert plan is not None
    spent = tokens_of(play, plan)
    assert abs(spent["greedy"] - spent["polite"]) <= 100
    play.commit()


def test_without_chunked_prefill_long_and_short_prompts_take_turns() -> None:
    play = Play(num_blocks=4096, max_model_len=512, max_num_batched_tokens=512, max_num_seqs=64, enable_chunked_prefill=False)
    play.add(*many(GREEDY, 20, prompt=500, max_tokens=1), *many(POLITE, 20, prompt=100, max_tokens=1))
    spent = Counter[str]()
    for _ in range(10):
        plan = play.submit()
        assert plan is not None
        spent += tokens_of(play, plan)
        play.commit()
    assert abs(spent["greedy"] - spent["polite"]) <= 1024


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=4),
    prompts=st.lists(st.integers(20, 120), min_size=4, max_size=4),
    outstanding=st.integers(1, 2),
)
def test_tenants_that_always_want_more_get_tokens_by_their_weights(
    weights: list[float], prompts: list[int], outstanding: int
) -> None:
    """However long their prompts are: within a step's worth, as deficit round robin promises."""
    budget = 512
    play = Play(num_blocks=1 << 14, max_num_seqs=budget, max_num_batched_tokens=budget, enable_prefix_caching=False)
    tenants = [Tenant(name=f"t{index}", weight=weight) for index, weight in enumerate(weights)]
    for index, (tenant, prompt) in enumerate(zip(tenants, prompts, strict=False)):
        need = 6 * budget // prompt
        play.add(*(spec(f"{index}.{number}", [index] * prompt, max_tokens=1, tenant=tenant) for number in range(need)))
    spent = Counter[str]()
    for _ in range(6):
        plan = play.submit()
        assert plan is not None
        spent += tokens_of(play, plan)
        while len(play.outstanding) >= outstanding:
            play.commit()
    total = sum(spent.values())
    for tenant in tenants:
        assert abs(spent[tenant.name] - total * tenant.weight / sum(weights)) <= budget


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    num_blocks=st.integers(24, 60),
    max_num_seqs=st.integers(1, 6),
    outstanding=st.integers(1, 2),
)
def test_every_tenant_is_served_to_the_end_in_whatever_memory(
    data: st.DataObject, num_blocks: int, max_num_seqs: int, outstanding: int
) -> None:
    """Nobody yields in circles: preemptions end, and the tokens are those of a sequence that was never preempted."""
    play = Play(num_blocks=num_blocks, max_num_seqs=max_num_seqs, max_num_batched_tokens=32)
    tenants = [Tenant(name=name, weight=data.draw(st.sampled_from([0.5, 1.0, 3.0]))) for name in "abc"]
    crowd = [
        spec(f"s{index}", data.draw(st.integers(1, 50)), max_tokens=data.draw(st.integers(1, 30)), tenant=tenant)
        for index, tenant in enumerate(data.draw(st.lists(st.sampled_from(tenants), min_size=2, max_size=8)))
    ]
    play.add(*crowd)
    play.finish(outstanding, lambda: check_invariants(play.scheduler))
    assert play.scheduler.stats().num_preemptions <= 20 * len(crowd)
    for each in crowd:
        assert play.tokens(each.sequence_id) == expected(each)[0]


@pytest.mark.parametrize("outstanding", [1, 2])
def test_tenants_change_no_token(outstanding: int) -> None:
    play = Play(num_blocks=40, max_num_seqs=5, max_num_batched_tokens=24)
    crowd = [spec(f"s{index}", 9, max_tokens=12, tenant=(GREEDY, POLITE)[index % 3 == 0]) for index in range(12)]
    play.add(*crowd)
    play.finish(outstanding)
    for each in crowd:
        assert play.tokens(each.sequence_id) == expected(each)[0]


def test_a_first_token_is_two_steps_away_at_most_however_much_another_key_asks_for() -> None:
    """One key fills every row and the queue; another sends one short request at a time. Two steps are in flight."""
    play = Play(num_blocks=182, block_size=16, max_num_seqs=4, max_num_batched_tokens=64, max_model_len=1024)
    sequences, waited = play.scheduler.registry.sequences, Counter[int]()
    name, asked_at = "", 0
    for step in range(300):
        while len(sequences) < 64:
            play.add(spec(f"greedy {step}.{len(sequences)}", 300, tenant=GREEDY, max_tokens=64))
        if not name and step % 3 == 0:
            name, asked_at = f"polite {step}", step
            play.add(spec(name, 14, max_tokens=2, tenant=POLITE))
        play.submit()
        if len(play.outstanding) == 2:
            play.commit()
        if any(delta.token_ids for delta in play.deltas[name]):
            waited[step - asked_at] += 1
            name = ""
    assert sum(waited.values()) > 40
    assert max(waited) <= 2
