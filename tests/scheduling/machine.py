"""Random operations on a tiny scheduler, every one followed by a check of all invariants.

The rules do whatever an engine may do, in any order, with up to two steps outstanding. What must be true afterwards does
not depend on the order: each reader was told the beginning of what the oracle says, or all of it when its sequence ended by
itself.
"""

from __future__ import annotations

from typing import Any

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from streamserve.errors import QueueFull
from streamserve.kv_groups import KvGroups
from streamserve.types import Pooling, SequenceSpec, StructuredOutputs, Tenant
from tests.scheduling.oracle import EOS, VOCABULARY, constraint_of, embedding_of, expected, marks
from tests.scheduling.play import Play
from tests.support.scheduler_invariants import check_invariants
from tests.support.specs import make_spec

MOST_DRAFTS = 4

TENANTS = [Tenant(), Tenant(), Tenant(name="a", weight=3.0), Tenant(name="b", weight=0.5)]

PREFIXES = [[], [1] * 4, [1] * 4 + [2] * 4, [1] * 4 + [2] * 4 + [3] * 4, [9] * 5]

BLOCK_SIZE, MAX_MODEL_LEN = 4, 32
WINDOWS: list[tuple[int | None, ...]] = [(None,), (None,), (4,), (7,), (None, 6), (5, None, 5), (1, 11, None)]


@st.composite
def settings_of_a_scheduler(draw: st.DrawFn) -> dict[str, Any]:
    """From as few blocks as one sequence needs to as many as hardly ever run out."""
    windows, step_tokens = draw(st.sampled_from(WINDOWS)), draw(st.sampled_from([5, 7, 16, 64]))
    least = KvGroups(BLOCK_SIZE, windows).blocks_for(MAX_MODEL_LEN, step_tokens)
    return {
        "windows": windows,
        "block_size": BLOCK_SIZE,
        "num_blocks": least + draw(st.integers(0, 12 * len(windows))),
        "max_num_seqs": draw(st.integers(1, 5)),
        "max_num_batched_tokens": step_tokens,
        "policy": draw(st.sampled_from(["fcfs", "priority"])),
        "enable_prefix_caching": draw(st.booleans()),
        "max_model_len": MAX_MODEL_LEN,
        "max_queue": 6,
    }


@st.composite
def sequence_specs(draw: st.DrawFn, name: str) -> SequenceSpec:
    tail = draw(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8))
    max_tokens = draw(st.integers(1, 11))
    generated: list[int] = []
    pooling = draw(st.sampled_from([None, None, None, None, Pooling("last"), Pooling("mean")]))
    constrained = pooling is None and draw(st.integers(0, 4)) == 0
    if pooling is not None:
        tokens = draw(st.sampled_from(PREFIXES)) + tail
        salt = draw(st.sampled_from(["", "pepper"]))
        return make_spec(name, tokens, max_tokens=1, pooling=pooling, cache_salt=salt, priority=draw(st.integers(-1, 1)))
    if not constrained and draw(st.integers(0, 5)) == 0:
        generated = draw(st.lists(st.integers(1, VOCABULARY - 1), max_size=max_tokens - 1))
    return make_spec(
        name,
        draw(st.sampled_from(PREFIXES)) + tail,
        generated_token_ids=generated,
        seed=draw(st.integers(0, 3)),
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, 2)),
        stop_token_ids=draw(st.sampled_from([[], [EOS], [EOS, 5, 7, 11]])),
        priority=draw(st.integers(-1, 1)),
        tenant=draw(st.sampled_from(TENANTS)),
        cache_salt=draw(st.sampled_from(["", "", "pepper"])),
        logprobs=draw(st.sampled_from([None, None, 1])),
        prompt_logprobs=draw(st.sampled_from([None, None, None, 1])),
        structured_outputs=StructuredOutputs(regex="." * draw(st.integers(1, 8))) if constrained else None,
        max_time_s=draw(st.sampled_from([None, None, None, 5.0])),
        reasoning=marks(has_begun=draw(st.booleans())),
        reasoning_budget=None if constrained else draw(st.sampled_from([None, None, 0, 1, 2, 5])),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """An engine that does anything at any time."""

    names: Bundle[str] = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.specs: dict[str, SequenceSpec] = {}
        self.num_wasted_at_most = 0

    @initialize(settings=settings_of_a_scheduler())
    def start(self, settings: dict[str, Any]) -> None:
        self.play = Play(**settings)

    @rule(target=names, data=st.data())
    def add(self, data: st.DataObject) -> str:
        name = f"s{len(self.specs)}"
        spec = data.draw(sequence_specs(name))
        try:
            self.play.add(spec, constraint=constraint_of(spec))
        except QueueFull:
            assert len(self.play.scheduler.registry.waiting) >= 6
        else:
            self.specs[name] = spec
        return name

    @precondition(lambda self: len(self.play.outstanding) < 2)
    @rule()
    def submit(self) -> None:
        before = self.play.scheduler.has_runnable
        planned = self.play.submit()
        assert planned or not before or self.play.outstanding, "runnable sequences, nothing in flight, and nothing planned"
        if planned:
            assert planned.num_tokens <= self.play.scheduler.limits.max_num_batched_tokens

    @precondition(lambda self: self.play.outstanding)
    @rule()
    def commit(self) -> None:
        self.play.commit()

    @rule(count=st.integers(1, 12))
    def run(self, count: int) -> None:
        """Overlapped turns of the engine's loop."""
        for _ in range(count):
            if len(self.play.outstanding) < 2:
                self.submit()
            if len(self.play.outstanding) == 2:
                self.commit()
            check_invariants(self.play.scheduler, most_drafts=MOST_DRAFTS * 3)

    @rule(name=names)
    def pause(self, name: str) -> None:
        assert self.play.scheduler.pause(name) == (name in self.play.scheduler.registry.sequences)

    @rule(name=names)
    def resume(self, name: str) -> None:
        assert self.play.scheduler.resume(name) == (name in self.play.scheduler.registry.sequences)

    @rule(name=names, num_drafts=st.integers(0, MOST_DRAFTS), wrong=st.integers(0, MOST_DRAFTS))
    def offer_drafts(self, name: str, num_drafts: int, wrong: int) -> None:
        """Guesses, of which those before one place are right."""
        is_known = name in self.play.scheduler.registry.sequences
        drafts = self.play.guess(self.specs[name], num_drafts, wrong) if is_known else []
        assert self.play.scheduler.offer_drafts(name, drafts) == is_known

    @rule(name=consumes(names))
    def abort(self, name: str) -> None:
        if name in self.play.scheduler.registry.sequences:
            self.play.abort(name)

    @rule(seconds=st.sampled_from([1.0, 3.0]))
    def wait(self, seconds: float) -> None:
        self.play.now += seconds
        self.play.record(self.play.scheduler.expire(self.play.now))

    @invariant()
    def everything_agrees(self) -> None:
        if hasattr(self, "play"):
            check_invariants(self.play.scheduler, most_drafts=MOST_DRAFTS * 3)

    @invariant()
    def readers_were_told_the_truth(self) -> None:
        for name, spec in self.specs.items():
            if not self.play.deltas[name]:
                continue
            told, (tokens, reason) = self.play.output(name), expected(spec)
            assert told.token_ids == tokens[: len(told.token_ids)], name
            assert all(delta.finish_reason is None for delta in self.play.deltas[name][:-1]), f"{name} was told after its end"
            assert (told.finish_reason is None) == (name in self.play.scheduler.registry.sequences), (
                f"{name} ended without a delta that says so"
            )
            if spec.pooling is not None and told.finish_reason == "stop":
                assert told.embedding == embedding_of(spec), name
            if told.finish_reason in ("stop", "length"):
                assert (told.token_ids, told.finish_reason) == (tokens, reason), name
            if told.token_ids:
                assert len(told.prompt_logprobs or []) == (
                    len(spec.prompt_token_ids) if spec.sampling.prompt_logprobs else 0
                ), name
                assert [each.token_id for each in told.logprobs or []] == (told.token_ids if spec.sampling.logprobs else []), (
                    name
                )

    def teardown(self) -> None:
        """Whoever is left runs to the end, and nothing stays behind."""
        if not hasattr(self, "play"):
            return
        scheduler = self.play.scheduler
        for name in list(scheduler.registry.sequences):
            scheduler.resume(name)
        self.play.finish()
        note(repr(scheduler.stats()))
        self.readers_were_told_the_truth()
        assert all(self.play.deltas[name][-1].finish_reason for name in self.specs)
        assert not scheduler.has_work
        assert self.play.used_blocks() == 0
        check_invariants(scheduler, most_drafts=MOST_DRAFTS * 3)
