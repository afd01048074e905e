"""The engine's loop: schedule step n+1, launch it, commit step n, publish its tokens.

Runs on one event loop, the host's: the caller's own (`inline`) or that of the engine process (`process`). Everything that
changes the scheduler (admit, pause, resume, abort) is a plain call between two awaits of that loop, so it takes effect at
the next step and needs neither lock nor queue. Knows no socket and no stream: tokens leave through a `DeltaSink` per API side.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import anyio
import anyio.lowlevel

from streamserve.config import EngineConfig
from streamserve.engine.constraints import CompileConstraint, compile_constraints
from streamserve.engine.error_info import describe
from streamserve.engine.given_up import GivenUp
from streamserve.engine.stats import LoopStats
from streamserve.errors import EngineDead, StreamserveError, Unavailable
from streamserve.executor.base import Executor, StepHandle
from streamserve.scheduling.constraint import Constraint
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.scheduler import Scheduler
from streamserve.scheduling.step import Step
from streamserve.types import EngineInfo, EngineStats, Quotas, SequenceSpec, Tenant, TokenDelta

logger = logging.getLogger(__name__)


class DeltaSink(Protocol):
    """One API side: a table of streams in this process, or the connection of an API worker."""

    def deliver(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        """Take one step's deltas of its sequences. Never blocks, never raises."""
        ...

    def end_all(self, error: StreamserveError) -> None:
        """End all of its sequences with this error. Never blocks, never raises."""
        ...


class InFlight(NamedTuple):
    """A step launched and not yet committed."""

    step: Step
    handle: StepHandle


class EngineCore:
    """Drives one scheduler and one executor, for any number of API sides.

    config              with `overlap` off each step is committed before the next is planned; the tokens are the same
    compile_constraint  compiles structured outputs off the loop; without it they are refused
    clock               seconds, monotonic
    cause               what the executor said of its ranks, if the engine died of that
    """

    def __init__(
        self,
        config: EngineConfig,
        executor: Executor,
        *,
        compile_constraint: CompileConstraint | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._executor = executor
        self._compile_constraint = compile_constraint
        self._clock = clock
        self._stats = LoopStats()
        self._sinks: dict[str, DeltaSink] = {}
        self._running: tuple[EngineInfo, Scheduler] | None = None
        self._given_up = GivenUp(clock)
        self._refusal: Unavailable | None = Unavailable("the engine is starting: try again in a few seconds")
        self._wakeup = anyio.Event()
        self._ranks_lost: EngineDead | None = None
        self.cause: EngineDead | None = None
        self._without_room: list[Callable[[], None]] = []
        self._departures = 0

    @property
    def info(self) -> EngineInfo:
        return self._started[0]

    @property
    def failure(self) -> EngineDead | None:
        """Why the engine is dead, if it is."""
        return self._refusal if isinstance(self._refusal, EngineDead) else None

    async def start(self) -> EngineInfo:
        """Load the model and get ready to admit; raises what `Executor.start` raises."""
        info = await self._executor.start(self._lose_ranks)
        self._running = (info, Scheduler(scheduler_limits(self._config, info)))
        self._refusal = None
        return info

    async def run(self) -> None:
        """Run the step loop until cancelled; return only after a step has failed or the ranks are lost.

        Either way the engine has ended.
        """
        try:
            await self._run_steps(self._started[1])
        except EngineDead as error:
            # The executor's verdict on a rank, whose own log has the traceback if there is one.
            logger.error("the engine died: %s", error.message)
            self.cause = error
            self.end(EngineDead(f"the engine died: {error.message}; restart it"))
        except Exception as error:
            logger.exception("the engine died")
            self.end(EngineDead(f"the engine died: {describe(error).message}; restart it"))
        finally:
            self.end(EngineDead("the engine was stopped"))

    async def compile(self, specs: list[SequenceSpec]) -> list[Constraint | None]:
        """Compile the constraints that `admit` takes beside the specs; off the loop and for a bounded time."""
        return await compile_constraints(specs, self._compile_constraint)

    def admit(self, specs: list[SequenceSpec], constraints: list[Constraint | None], sink: DeltaSink) -> None:
        """Queue sequences, all or none; their tokens go to `sink`, beginning with a later iteration of the loop.

        Raises what `Scheduler.add_request` does, `EndsEngines` or `Unavailable`.
        """
        if self._refusal is not None:
            raise self._refusal
        self._given_up.check(specs)
        scheduler, now = self._started[1], self._clock()
        scheduler.add_request(specs, now, constraints)
        self._sinks.update((spec.sequence_id, sink) for spec in specs)
        self._wakeup.set()

    def unprogressed(self) -> set[str]:
        """The sequences that are not paused, and of which this engine has generated no token."""
        sequences = self._started[1].registry.sequences.values()
        return {sequence.sequence_id for sequence in sequences if not (sequence.has_progressed or sequence.is_paused)}

    def quotas(self, tenant: Tenant) -> Quotas | None:
        """What a tenant may still use in this minute; None for one that has no limits."""
        return None if self._running is None else self._running[1].intake.quotas(tenant, self._clock())

    def call_when_room(self, call: Callable[[], None]) -> None:
        """Call once, within a step of when a sequence leaves the queue or ends."""
        if not self._without_room:
            self._departures = self._started[1].intake.num_departures
        self._without_room.append(call)

    def refuse(self, fingerprints: list[bytes]) -> None:
        """Admit no sequences of these requests for some minutes: they were given up since engines ended under them."""
        self._given_up.add(fingerprints)

    def abort(self, sequence_id: str, *, left_at: float | None = None) -> None:
        """Remove a sequence and free all it holds; nothing more is delivered for it. Unknown ones are ignored.

        left_at  when its reader left, on this engine's clock; by default now
        """
        if sequence_id not in self._sinks:
            return
        now = self._clock()
        self._started[1].abort(sequence_id, left_at=now if left_at is None else left_at)
        self._forget(sequence_id)
        self._stats.count_abort(0.0 if left_at is None else now - left_at)
        self._wakeup.set()

    def abort_all(self, sink: DeltaSink) -> None:
        """Abort every sequence whose deltas go to `sink`."""
        for sequence_id in [sequence_id for sequence_id, owner in self._sinks.items() if owner is sink]:
            self.abort(sequence_id)

    def pause(self, sequence_id: str) -> None:
        """Plan a sequence no further until `resume`; unknown ones are ignored."""
        if sequence_id in self._sinks:
            self._started[1].pause(sequence_id)

    def resume(self, sequence_id: str) -> None:
        """Plan a paused sequence again; unknown ones are ignored."""
        if sequence_id in self._sinks:
            self._started[1].resume(sequence_id)
            self._wakeup.set()

    def end_reasoning(self, sequence_id: str) -> None:
        """Have a sequence end its reasoning and go on with the answer; unknown ones are ignored."""
        if sequence_id in self._sinks:
            self._started[1].end_reasoning(sequence_id)

    def end(self, reason: EngineDead) -> None:
        """End every sequence with this error and admit no more; the first reason stays. Idempotent."""
        if self.failure is None:
            self._refusal = reason
            sinks = set(self._sinks.values())
            for sequence_id in list(self._sinks):
                self._forget(sequence_id)
            for sink in sinks:
                sink.end_all(reason)

    def stats(self) -> EngineStats:
        """A snapshot; raises `Unavailable` before the start and `EngineDead` after the end."""
        if self.failure is not None:
            raise self.failure
        return self._stats.complete(self._started[1].stats(), self._clock())

    async def _run_steps(self, scheduler: Scheduler) -> None:
        previous: InFlight | None = None
        while True:
            launched = self._launch(scheduler)
            due = previous if self._config.overlap else launched
            if due is not None:
                # Lets readers and commands run even when steps end faster than they are planned.
                await anyio.lowlevel.checkpoint()
                result = await due.handle.result()
                self._publish(scheduler.commit(due.step, result, self._clock()))
            elif launched is None:
                await self._wait_for_work(scheduler)
            previous = launched if self._config.overlap else None

    def _launch(self, scheduler: Scheduler) -> InFlight | None:
        now = self._clock()
        self._stats.begin_iteration(now)
        self._publish(scheduler.expire(now))
        step = scheduler.schedule(now)
        if self._without_room and scheduler.intake.num_departures > self._departures:
            calls, self._without_room = self._without_room, []
            for call in calls:
                call()
        return None if step is None else InFlight(step, self._executor.submit(step.plan))

    async def _wait_for_work(self, scheduler: Scheduler) -> None:
        """Sleep until a sequence is admitted, resumed or aborted, its time is up, or the ranks are lost, which is raised."""
        self._stats.begin_idle()
        self._wakeup = anyio.Event()
        deadline = scheduler.next_deadline(self._clock())
        with anyio.move_on_after(None if deadline is None else max(0.0, deadline - self._clock())):
            if self._ranks_lost is None:
                await self._wakeup.wait()
        if self._ranks_lost is not None:
            raise self._ranks_lost

    def _lose_ranks(self, reason: EngineDead) -> None:
        self._ranks_lost = reason
        self._wakeup.set()

    def _publish(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        batches: dict[DeltaSink, list[tuple[str, TokenDelta]]] = {}
        for item in deltas:
            sequence_id, delta = item
            sink = self._sinks.get(sequence_id)
            if sink is None:
                continue
            batch = batches.get(sink)
            if batch is None:
                batches[sink] = batch = []
            batch.append(item)
            if delta.finish_reason is not None:
                self._forget(sequence_id)
        for sink, batch in batches.items():
            sink.deliver(batch)

    def _forget(self, sequence_id: str) -> None:
        del self._sinks[sequence_id]

    @property
    def _started(self) -> tuple[EngineInfo, Scheduler]:
        if self._running is None:
            raise self._refusal or Unavailable("the engine has not started")
        return self._running


def scheduler_limits(config: EngineConfig, info: EngineInfo) -> SchedulerLimits:
    """The scheduler's limits, known once the model is loaded and the KV cache sized."""
    return SchedulerLimits(
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        windows=info.windows,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        max_queue=config.max_queue,
        max_queue_tokens=config.max_queue_tokens,
        max_queue_time_s=config.max_queue_time_s,
        policy=config.scheduling_policy,
        enable_prefix_caching=config.enable_prefix_caching,
        enable_chunked_prefill=config.enable_chunked_prefill,
    )
