"""Who runs next: admission, the token budget of a step, preemption, and what becomes of sampled tokens.

Runs on the engine's event loop, one call at a time. Pure Python: no torch, no anyio, no I/O; the time is an argument.

There is no prefill phase and no decode phase. A sequence has tokens, some of them computed; each step hands out a budget of
tokens: to those that lack one (decode), then to those that lack more (prefill), then to those that wait. Steps may be
planned while earlier ones run: `num_computed` advances when a step is planned, tokens are appended when it is committed,
and what lies between is in flight.
"""

from __future__ import annotations

from streamserve.errors import InvalidParameter, QueueFull, UnsupportedParameter
from streamserve.scheduling.admission import check_spec, replay
from streamserve.scheduling.constraint import Constraint
from streamserve.scheduling.counters import Counters
from streamserve.scheduling.deadlines import Deadlines
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.outcome import delta_of, ending_of, final_delta
from streamserve.scheduling.plan import RowWork, StepResult
from streamserve.scheduling.policy import order_of
from streamserve.scheduling.sequence import Sequence
from streamserve.scheduling.sequence_registry import SequenceRegistry
from streamserve.scheduling.step import Step, StepDraft
from streamserve.types import EngineStats, ErrorInfo, FinishReason, SequenceSpec, TokenDelta

Deltas = list[tuple[str, TokenDelta]]


class Scheduler:
    """All sequences of one engine, from `add` to their last delta."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.deadlines = Deadlines()
        self.counters = Counters()
        self.registry = SequenceRegistry(limits, self.counters)
        self._unreported: Deltas = []
        self._arrivals = 0
        self._next_step = 0
        self.last_committed_step = -1

    # Sequences come, wait, and go.

    def add(self, spec: SequenceSpec, now: float, constraint: Constraint | None = None) -> None:
        """Queue a sequence; with `generated_token_ids` it goes on after them.

        Raises `QueueFull`, `PromptTooLarge`, `ContextLengthExceeded`, `InvalidParameter` or `UnsupportedParameter`, in
        which case nothing changed.
        """
        check_spec(spec, self.limits)
        if spec.sequence_id in self.registry.sequences:
            raise InvalidParameter("sequence_id", f"{spec.sequence_id!r} is in use")
        if spec.structured_outputs is not None and constraint is None:
            raise UnsupportedParameter("structured_outputs", "this engine compiles no grammars")
        num_waiting = len(self.registry.waiting)
        if num_waiting >= self.limits.max_queue + self.registry.rows.num_free_rows:
            raise QueueFull(f"{num_waiting} sequences wait already: try again later")
        if constraint is not None:
            replay(constraint, spec.generated_token_ids)
        order = order_of(self.limits.policy, spec.priority, self._arrivals)
        deadline = None if spec.max_time_s is None else now + spec.max_time_s
        sequence = Sequence(spec, order, deadline, constraint, now)
        self._arrivals += 1
        self.registry.enter(sequence)
        self.deadlines.add(sequence)

    def abort(self, sequence_id: str, reason: FinishReason = "abort", error: ErrorInfo | None = None) -> TokenDelta | None:
        """End a sequence now, in whatever state; returns its last delta, or None when it is unknown.

        Its row and blocks are free at once. A token in flight is dropped when its step is committed.
        """
        sequence = self.registry.sequences.get(sequence_id)
        if sequence is None:
            return None
        self.registry.end(sequence, reason)
        return final_delta(sequence, error)

    def pause(self, sequence_id: str) -> bool:
        """Plan no more steps for a sequence until `resume`. It keeps its blocks unless others need them. False when unknown."""
        sequence = self.registry.sequences.get(sequence_id)
        if sequence is None:
            return False
        self.registry.pause(sequence)
        return True

    def resume(self, sequence_id: str) -> bool:
        """Undo `pause`. False when unknown."""
        sequence = self.registry.sequences.get(sequence_id)
        if sequence is None:
            return False
        self.registry.resume(sequence)
        return True

    def expire(self, now: float) -> Deltas:
        """End sequences whose time is up; returns their last deltas, and those of any that `schedule` ended."""
        self._end_overdue(now)
        ended, self._unreported = self._unreported, []
        return ended

    def next_deadline(self) -> float | None:
        """When `expire` will next have something to do."""
        return self.deadlines.next()

    # Steps are planned and committed.

    def schedule(self, now: float) -> Step | None:
        """Plan the next step; None when nobody can run. Steps planned earlier may still be in flight.

        Sequences whose time is up get no work; their last deltas come with the next `commit` or `expire`.
        """
        self._end_overdue(now)
        draft = StepDraft(self._next_step, self.limits.max_num_batched_tokens)
        unfinished = self._plan_decodes(draft)
        self._plan_chunks(draft, unfinished)
        self._plan_admissions(draft, now)
        step = draft.finish()
        if step is not None:
            self._next_step += 1
            self.counters.steps += 1
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> Deltas:
        """Take in what a step produced; returns what each sequence got, and whose time is up.

        Raises `ValueError` when the result is not that of the oldest step in flight.
        """
        if not step.plan.step == result.step == self.last_committed_step + 1:
            raise ValueError(
                f"expected the result of step {self.last_committed_step + 1}, got {result.step} for {step.plan.step}"
            )
        self.last_committed_step = result.step
        self._commit_prompts(step, result)
        deltas = self._commit_tokens(step, result)
        deltas += self.expire(now)
        return deltas

    @property
    def num_in_flight(self) -> int:
        """Steps planned and not committed."""
        return self._next_step - 1 - self.last_committed_step

    @property
    def has_runnable(self) -> bool:
        """True while some sequence is neither paused nor ended: with no step in flight, `schedule` is sure to plan one."""
        return bool(self.registry.running or self.registry.waiting)

    @property
    def has_work(self) -> bool:
        """True while any sequence lives, paused ones included."""
        return bool(self.registry.sequences)

    def stats(self) -> EngineStats:
        """A snapshot; `heartbeat_s` is the driver's to fill in."""
        return EngineStats(
            num_requests_running=len(self.registry.running),
            num_requests_waiting=len(self.registry.waiting),
            num_requests_paused=self.registry.num_paused,
            kv_blocks_total=self.limits.num_blocks,
            kv_blocks_used=self.limits.num_blocks - self.registry.kv.num_free,
            **self.counters.totals(),
        )

    # The three claims on a step's budget, in order.

    def _plan_decodes(self, draft: StepDraft) -> list[Sequence]:
        """One token for every running sequence that lacks just one; returns those that lack more."""
        unfinished: list[Sequence] = []
        decodes, decoding, index = draft.decodes, draft.decoding, draft.index
        for sequence in tuple(self.registry.running):
            start, known = sequence.num_computed, sequence.num_known
            if known == sequence.limit:
                continue  # its last token is in flight
            if known - start > 1:
                unfinished.append(sequence)  # or an earlier one of this loop preempted it
                continue
            if sequence.constraint is not None and sequence.num_in_flight:
                continue  # its next bitmask needs the token in flight
            if start == sequence.reach:
                growths = self.registry.grow(sequence, known)
                if growths is None:
                    continue  # preempted
                draft.growths += growths
            if sequence.constraint is not None:
                draft.work(sequence, 1)
                continue
            decodes.append(RowWork(sequence.row, start, 1, True))
            decoding.append(sequence)
            sequence.num_computed = known
            sequence.num_known = known + 1
            sequence.last_step = index
        draft.budget = self.limits.max_num_batched_tokens - len(decodes)
        if decodes and self.limits.enable_chunked_prefill:
            draft.scoring_budget = self.limits.max_scored_tokens
        return unfinished

    def _plan_chunks(self, draft: StepDraft, unfinished: list[Sequence]) -> None:
        """The next chunk of prompts under way, less those preempted by a decode or an earlier prompt.

        Blocks were claimed at admission, but for layers that see a window.
        """
        for index, sequence in enumerate(unfinished):
            if not (sequence.is_resident and (room := draft.room_for(sequence))):
                continue
            start = sequence.num_computed
            if start + room > sequence.reach:
                draft.growths += self.registry.grow_prompt(sequence, start + room, unfinished[index + 1 :])
                room = min(room, sequence.reach - start)
            if room:
                draft.work(sequence, room)

    def _plan_admissions(self, draft: StepDraft, now: float) -> None:
        """Rows and blocks for those that wait, strictly in order, as far as the budget and the watermark go."""
        while draft.budget:
            sequence = self.registry.waiting.first
            # A token of its former residence may be in flight: it must be appended before the sequence is computed anew.
            if sequence is None or sequence.last_step > self.last_committed_step:
                return
            if not self.limits.enable_chunked_prefill and len(sequence.token_ids) > draft.budget:
                return
            if not draft.room_for(sequence):
                return
            if not self.registry.admit(sequence):
                return
            if sequence.queue_s is None:
                sequence.queue_s = now - sequence.arrived_at
            draft.start(sequence)
            draft.work(sequence, draft.room_for(sequence))

    # What a step produced, and whose time is up.

    def _end_overdue(self, now: float) -> None:
        while (sequence := self.deadlines.pop_overdue(now)) is not None:
            self.registry.end(sequence, "time")
            self._unreported.append((sequence.sequence_id, final_delta(sequence)))

    def _commit_prompts(self, step: Step, result: StepResult) -> None:
        for sequence, num_tokens in step.chunks:
            if sequence.is_resident:
                self.registry.kv.commit(sequence, num_tokens)
        for row, entries in (result.prompt_logprobs or {}).items():
            sequence, start = step.scored[row]
            sequence.add_prompt_logprobs(start, entries)

    def _commit_tokens(self, step: Step, result: StepResult) -> Deltas:
        deltas: Deltas = []
        logprobs = result.logprobs
        for index, (sequence, token_id) in enumerate(zip(step.sampled, result.token_ids, strict=True)):
            if sequence.finish_reason is not None:
                self.counters.wasted(sequence)
                continue
            sequence.token_ids.append(token_id)
            length = len(sequence.token_ids)
            if length > sequence.next_full and sequence.is_resident:
                self.registry.kv.commit(sequence, length - 1)
            if sequence.only_reports_ids and token_id not in sequence.stop_token_ids and length < sequence.limit:
                deltas.append((sequence.sequence_id, TokenDelta([token_id])))
                continue
            ending = ending_of(sequence, token_id)
            if ending is not None:
                self.registry.end(sequence, ending.reason)
            deltas.append((sequence.sequence_id, delta_of(sequence, token_id, ending, logprobs[index] if logprobs else None)))
        self.counters.generation_tokens += len(deltas)
        return deltas


__all__ = ["Deltas", "Scheduler", "SchedulerLimits"]
