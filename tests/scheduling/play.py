"""Playing the runner by hand: submit and commit are separate, so that a test decides how many steps are outstanding."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Any

from streamserve.scheduling.constraint import Constraint
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.scheduling.scheduler import Deltas, Scheduler, SchedulerLimits
from streamserve.scheduling.step import Step
from streamserve.types import SequenceSpec, TokenDelta
from tests.scheduling.device import Device
from tests.scheduling.oracle import VOCABULARY, expected
from tests.support.specs import make_spec


def limits(**changes: Any) -> SchedulerLimits:
    defaults: dict[str, Any] = {
        "num_blocks": 64,
        "block_size": 4,
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 128,
    }
    return SchedulerLimits(**(defaults | changes))


def spec(name: str, prompt: int | list[int] = 6, **changes: Any) -> SequenceSpec:
    """A sequence that only its length ends; `prompt` is a length (of tokens no other sequence has) or the tokens."""
    if isinstance(prompt, int):
        prompt = [1000 + sum(name.encode()) * 37 + position for position in range(prompt)]
    fields: dict[str, Any] = {"seed": 1, "max_tokens": 8} | changes
    return make_spec(name, prompt, **fields)


class Play:
    """A scheduler, a device, and the steps between them."""

    def __init__(self, **changes: Any) -> None:
        self.scheduler = Scheduler(limits(**changes))
        self.device = Device(self.scheduler.limits.block_size, self.scheduler.limits.windows)
        self.outstanding: deque[tuple[Step, StepResult]] = deque()
        self.deltas: dict[str, list[TokenDelta]] = defaultdict(list)
        self.now = 0.0

    def add(self, *specs: SequenceSpec, constraint: Constraint | None = None) -> None:
        for each in specs:
            self.scheduler.add(each, self.now, constraint)

    def submit(self) -> Plan | None:
        """Plan a step and let the device run it; its result waits for `commit`."""
        step = self.scheduler.schedule(self.now)
        if step is None:
            return None
        self.outstanding.append((step, self.device.run(step.plan)))
        return step.plan

    def commit(self) -> dict[str, list[int]]:
        """Commit the oldest step; the new tokens of each sequence."""
        step, result = self.outstanding.popleft()
        deltas = self.scheduler.commit(step, result, self.now)
        self.record(deltas)
        return {name: delta.token_ids for name, delta in deltas}

    def record(self, deltas: Deltas) -> None:
        for name, delta in deltas:
            self.deltas[name].append(delta)

    def abort(self, name: str) -> None:
        delta = self.scheduler.abort(name)
        assert delta is not None
        self.record([(name, delta)])

    def step(self) -> dict[str, list[int]]:
        """One step without overlap."""
        assert not self.outstanding
        assert self.submit() is not None
        return self.commit()

    def finish(self, outstanding: int = 2, before_submit: Callable[[], object] = lambda: None) -> None:
        """Drive until no sequence can run, with up to so many steps outstanding."""
        while self.scheduler.has_runnable or self.outstanding:
            before_submit()
            planned = self.submit()
            assert planned or self.outstanding, "runnable sequences, and nothing planned"
            while self.outstanding and (planned is None or len(self.outstanding) >= outstanding):
                self.commit()
                planned = planned or Plan(0, [], [], [])

    def output(self, name: str) -> TokenDelta:
        """Everything its reader received, as one delta."""
        first, *rest = self.deltas[name]
        for delta in rest:
            first = first.then(delta)
        return first

    def tokens(self, name: str) -> list[int]:
        return self.output(name).token_ids if self.deltas[name] else []

    def guess(self, spec: SequenceSpec, num_tokens: int, wrong: int | None = None) -> list[int]:
        """What comes next of a sequence, tokens in flight considered; the one at place `wrong` is another."""
        sequence = self.scheduler.registry.sequences[spec.sequence_id]
        length = self.device.rows[sequence.row].num_tokens if sequence.is_resident else len(sequence.token_ids)
        first = length - len(spec.prompt_token_ids) - len(spec.generated_token_ids)
        tokens = [*expected(spec)[0], *range(VOCABULARY)][first : first + num_tokens]
        return [token_id + 1 if place == wrong else token_id for place, token_id in enumerate(tokens)]

    def row_of(self, name: str) -> int:
        return self.scheduler.registry.sequences[name].row

    def used_blocks(self) -> int:
        return self.scheduler.stats().kv_blocks_used


def rows(plan: Plan | None) -> dict[int, tuple[int, int, int]]:
    """row -> (start, count, num_sampled) of a plan."""
    assert plan is not None
    return {work.row: (work.start, work.count, work.num_sampled) for work in plan.work}
