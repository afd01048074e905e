"""A scheduler and a runner in one thread: sequences in, tokens out, with as many steps in flight as a test wants."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.scheduler import Scheduler
from streamserve.scheduling.sequence import Sequence
from streamserve.types import SequenceSpec, TokenDelta
from streamserve.worker.runner import Runner
from tests.support.ranks import RankThreads
from tests.support.scheduler_invariants import check_invariants
from tests.support.specs import make_spec


def spec(name: str, prompt: list[int], max_tokens: int = 12, **settings: object) -> SequenceSpec:
    """A sequence; greedy unless told otherwise."""
    defaults: dict[str, object] = {"seed": 0, "temperature": 0.0}
    return make_spec(name, prompt, max_tokens=max_tokens, **(defaults | settings))


class Stepper:
    """Plays the engine's loop by hand.

    in_flight  steps launched and not committed, at most: 2 overlaps as the engine does, 1 does not
    propose    when set, called before each step with each sequence that runs; returns drafts for it
    num_steps  steps launched so far
    """

    def __init__(self, runner: Runner | RankThreads, limits: SchedulerLimits, *, in_flight: int = 2) -> None:
        self.propose: Callable[[Sequence], list[int]] | None = None
        self.num_steps = 0
        self.scheduler = Scheduler(limits)
        self.runner = runner
        self._in_flight = in_flight

    def run(self, *specs: SequenceSpec, on_step: Callable[[], object] = lambda: None) -> dict[str, TokenDelta]:
        """Admit all, run to the end, and return what each produced, merged; `on_step` is called when a step is planned."""
        for one in specs:
            self.scheduler.add(one, 0.0)
        merged: dict[str, TokenDelta] = {}
        flying = deque()
        while self.scheduler.has_work or flying:
            for sequence in self.scheduler.registry.running if self.propose is not None else ():
                self.scheduler.offer_drafts(sequence.sequence_id, self.propose(sequence))
            step = self.scheduler.schedule(0.0)
            on_step()
            if step is not None:
                self.num_steps += 1
                flying.append((step, self.runner.step(step.plan)))
            if step is None or len(flying) >= self._in_flight:
                done, pending = flying.popleft()
                for name, delta in self.scheduler.commit(done, pending.wait(), 0.0):
                    merged[name] = merged[name].then(delta) if name in merged else delta
            check_invariants(self.scheduler, most_drafts=0 if self.propose is None else 32)
        return merged
