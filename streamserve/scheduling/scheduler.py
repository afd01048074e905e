"""The scheduler: admission, the token budget of each step, preemption, and the commit of sampled tokens.

Runs on the engine's event loop, one call at a time. Pure Python: no torch, no anyio, no I/O; the time is an argument.

There is no prefill phase and no decode phase. A sequence has tokens, some of them computed; each step hands out a budget of
tokens: to those that lack one (decode), then to those that lack more (prefill), then to those that wait. Steps may be
planned while earlier ones run: `num_computed` advances when a step is planned, tokens are appended when it is committed,
and what lies between is in flight. A step may check drafts, guesses for a sequence's next tokens, and then yields one token or
more: until it is committed, the sequence is planned for the most there can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.scheduling.constraint import Constraint
from streamserve.scheduling.counters import Counters
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.scheduling.mask_turns import MaskTurns
from streamserve.scheduling.outcome import OUT_OF_MEMORY, append_tokens, delta_of, final_delta, pooled_delta
from streamserve.scheduling.plan import NO_TOKEN, RowWork, StepResult
from streamserve.scheduling.progress_reports import ProgressReports
from streamserve.scheduling.queue.admission import IdCheck, check_spec, replay, require_choice
from streamserve.scheduling.queue.deadlines import Deadlines
from streamserve.scheduling.queue.intake import Intake
from streamserve.scheduling.queue.policy import order_of
from streamserve.scheduling.queue.tenants import MIN_TURN, Share
from streamserve.scheduling.sequence import Request, Sequence
from streamserve.scheduling.sequence_registry import SequenceRegistry
from streamserve.scheduling.step import Step, StepBuilder
from streamserve.types import EngineStats, ErrorInfo, FinishReason, SequenceSpec, TokenDelta, TokenLogprobs

Deltas = list[tuple[str, TokenDelta]]


class Scheduler:
    """All sequences of one engine, from `add` to their last delta."""

    def __init__(self, limits: SchedulerLimits) -> None:
        self.limits = limits
        self.deadlines = Deadlines()
        self.counters = Counters()
        self.registry = SequenceRegistry(limits, self.counters)
        self.intake = Intake(limits, self.registry)
        self._ids = IdCheck(limits.vocab_size)
        self.progress = ProgressReports(self.registry.tenants, self.intake.wait_s)
        self._masks = MaskTurns()
        self._unreported: Deltas = []
        self._arrivals = 0
        self._next_step = 0
        self.last_committed_step = -1
        self.step_tokens = limits.max_num_batched_tokens

    # Sequences come, wait, and go.

    def add(self, spec: SequenceSpec, now: float, constraint: Constraint | None = None) -> None:
        """Queue a request of one sequence; see `add_request`."""
        self.add_request([spec], now, [constraint])

    def add_request(self, specs: list[SequenceSpec], now: float, constraints: list[Constraint | None]) -> None:
        """Queue the sequences of a request, all or none; those with `generated_token_ids` continue after them.

        Raises `QueueFull`, `RateLimited`, `PromptTooLarge`, `ContextLengthExceeded`, `InvalidParameter` or
        `UnsupportedParameter`, in which case nothing changed.
        """
        self.intake.require_room(specs, now)
        request = Request(specs[0].tenant, now, specs[0].patience_s)
        try:
            for spec, constraint in zip(specs, constraints, strict=True):
                self._add(spec, request, constraint)
        except Exception:
            for sequence in request.sequences:
                self.registry.end(sequence, "abort")
            raise
        for sequence in request.sequences:
            self.deadlines.add(sequence)
            self.progress.entered(sequence, now)
        self.intake.enter(request, now)

    def _add(self, spec: SequenceSpec, request: Request, constraint: Constraint | None) -> None:
        check_spec(spec, self.limits)
        self._ids.require(spec)
        if spec.sequence_id in self.registry.sequences:
            raise InvalidParameter("sequence_id", f"{spec.sequence_id!r} is in use")
        if spec.structured_outputs is not None and constraint is None:
            raise UnsupportedParameter("structured_outputs", "this engine compiles no grammars")
        if constraint is not None:
            replay(constraint, spec.generated_token_ids)
            if not request.sequences:
                # Outputs of a request begin alike, and a mask may take long.
                require_choice(constraint, spec)
        order = order_of(self.limits.policy, spec.priority, self._arrivals)
        deadline = None if spec.max_time_s is None else request.arrived_at + spec.max_time_s
        sequence = Sequence(spec, order, deadline, constraint, request)
        self._arrivals += 1
        self.registry.enter(sequence)
        request.sequences.append(sequence)

    def abort(
        self,
        sequence_id: str,
        reason: FinishReason = "abort",
        error: ErrorInfo | None = None,
        *,
        left_at: float | None = None,
    ) -> TokenDelta | None:
        """End a sequence now, in whatever state; returns its last delta, or None when it is unknown.

        left_at  when its client gave it up, if that is why

        Its row and blocks are free at once. A token in flight is dropped when its step is committed.
        """
        sequence = self.registry.sequences.get(sequence_id)
        if sequence is None:
            return None
        self._end(sequence, reason, left_at)
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

    def end_reasoning(self, sequence_id: str) -> bool:
        """End the reasoning of a sequence: no token but its closing mark follows those in flight. False when unknown.

        Once it is over, or where the sequence has none, nothing changes.
        """
        sequence = self.registry.sequences.get(sequence_id)
        if sequence is None:
            return False
        sequence.end_reasoning()
        return True

    def offer_drafts(self, sequence_id: str, token_ids: list[int]) -> bool:
        """Have the next step of a sequence check these guesses for the tokens that follow. False when unknown.

        They replace those offered before, and are checked once, as many as there are blocks and budget for, behind whatever
        tokens the sequence has by then. Wrong ones cost their computation and change no output.
        """
        sequence = self.registry.sequences.get(sequence_id)
        if sequence is None:
            return False
        sequence.offer_drafts(token_ids)
        return True

    def expire(self, now: float) -> Deltas:
        """End sequences whose time is up; returns their last deltas, and those of any that `schedule` ended."""
        self._end_overdue(now)
        ended, self._unreported = self._unreported, []
        return ended

    def next_deadline(self, now: float) -> float | None:
        """When `expire` will next have something to do."""
        times = [time for time in (self.deadlines.next(), self.intake.next_overdue(now)) if time is not None]
        return min(times, default=None)

    # Steps are planned and committed.

    def schedule(self, now: float) -> Step | None:
        """Plan the next step; None when no sequence can run. Steps planned earlier may still be in flight.

        Sequences whose time is up get no work; their last deltas come with the next `commit` or `expire`.
        """
        self._end_overdue(now)
        self.registry.make_room()
        self._masks.begin(self.registry.running)
        builder = StepBuilder(self._next_step, self.step_tokens, self._masks)
        unfinished = self._plan_decodes(builder)
        if unfinished or self.registry.waiting:
            self._plan_prompts(builder, unfinished, now)
        self._unreported += self.progress.of_queue(now)
        step = builder.finish()
        if step is not None:
            self._next_step += 1
            self.counters.planned(builder.num_tokens)
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> Deltas:
        """Commit a step's result; returns the deltas of its sequences, and of those whose time is up.

        Raises `ValueError` when the result is not that of the oldest step in flight.
        """
        if not step.plan.step == result.step == self.last_committed_step + 1:
            raise ValueError(
                f"expected the result of step {self.last_committed_step + 1}, got {result.step} for {step.plan.step}"
            )
        self.last_committed_step = result.step
        deltas, self._unreported = self._unreported, []
        if result.is_divided:
            deltas += self._commit_shortage(step, result)
        self._commit_prompts(step, result, now)
        if result.embeddings is not None:
            deltas += self._commit_pooled(step, result.embeddings)
        deltas += self._commit_tokens(step, result, now)
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

    # The claims on a step's budget, in order.

    def _plan_decodes(self, builder: StepBuilder) -> list[Sequence]:
        """The next token, and drafts, of every running sequence that lacks just one; returns those that lack more."""
        unfinished: list[Sequence] = []
        builder.draft_budget = builder.budget - len(self.registry.running)
        decodes, decoding, index = builder.decodes, builder.decoding, builder.index
        for sequence in tuple(self.registry.running):
            start, known = sequence.num_computed, sequence.num_known
            if known == sequence.limit:
                continue  # its last token is in flight
            if known - start > 1:
                unfinished.append(sequence)  # or an earlier one of this loop preempted it
                continue
            if sequence.is_special:
                self._plan_special(builder, sequence)
                continue
            if start == sequence.reach and not self._grow(builder, sequence):
                continue  # preempted
            decodes.append(RowWork(sequence.row, start, 1, 1))
            decoding.append(sequence)
            sequence.num_computed = known
            sequence.num_known = known + 1
            sequence.last_step = index
        builder.budget = self.step_tokens - len(decodes)
        if builder.prefills:
            builder.budget -= sum(work.count for work in builder.prefills)
        if builder.budget < self.step_tokens and self.limits.enable_chunked_prefill:
            builder.scoring_budget = self.limits.max_scored_tokens
        return unfinished

    def _plan_special(self, builder: StepBuilder, sequence: Sequence) -> None:
        """The next token of a sequence with a constraint or limited reasoning, with drafts or with drafts in flight."""
        if sequence.awaits_commit or not self._masks.has_turn(sequence):
            return
        if sequence.num_computed == sequence.reach and not self._grow(builder, sequence):
            return
        token_ids = sequence.take_drafts(min(builder.draft_budget, sequence.limit - sequence.num_known - 1))
        token_ids = token_ids[: self._reserve(builder, sequence, len(token_ids))]
        if token_ids:
            builder.check(sequence, token_ids)
        else:
            builder.work(sequence, 1)

    def _grow(self, builder: StepBuilder, sequence: Sequence) -> bool:
        """Give a running sequence blocks for its next token; False when it was preempted for lack of them."""
        growths = self.registry.grow(sequence, sequence.num_known)
        if growths is None:
            return False
        builder.growths += growths
        return True

    def _reserve(self, builder: StepBuilder, sequence: Sequence, num_drafts: int) -> int:
        """Take free blocks for drafts; returns how many drafts have a place. No sequence is preempted for them."""
        while sequence.reach < sequence.num_known + num_drafts:
            growths = self.registry.kv.extend(sequence, sequence.reach + 1)
            if growths is None:
                break
            builder.growths += growths
        return min(num_drafts, sequence.reach - sequence.num_known)

    def _plan_prompts(self, builder: StepBuilder, unfinished: list[Sequence], now: float) -> None:
        """Prompts of each tenant in turn: those under way, then those that wait.

        What is left when all that are owed tokens have had them is for whoever comes next.
        """
        self._masks.begin_prompts()
        num_waiting = len(self.registry.waiting)
        turns = self.registry.tenants.begin_round(builder.budget, unfinished)
        for share in turns:
            left = builder.budget
            is_owed = share.credit > 0 and share is not turns[-1]
            builder.turn_budget = max(MIN_TURN, int(share.credit)) if is_owed else left
            self._plan_chunks(builder, unfinished, share)
            self._plan_admissions(builder, share, now)
            share.spent += left - builder.budget
        self.registry.tenants.end_round(turns)
        if num_waiting:
            self.intake.drained(num_waiting - len(self.registry.waiting), now)

    def _plan_chunks(self, builder: StepBuilder, unfinished: list[Sequence], share: Share) -> None:
        """The next chunk of a tenant's prompts under way, less those preempted by a decode or an earlier prompt.

        Blocks were claimed at admission, but for layers that see a window.
        """
        for index, sequence in enumerate(unfinished):
            if not (sequence.is_resident and sequence.tenant == share.tenant.name and (count := builder.allowance(sequence))):
                continue
            start = sequence.num_computed
            if start + count > sequence.reach:
                later = [each for each in unfinished[index + 1 :] if each.last_step != builder.index]
                builder.growths += self.registry.grow_prompt(sequence, start + count, later)
                count = min(count, sequence.reach - start)
            if count:
                builder.work(sequence, count)

    def _plan_admissions(self, builder: StepBuilder, share: Share, now: float) -> None:
        """Rows and blocks for those of a tenant that wait, strictly in order, as far as the turn and the watermark go."""
        while builder.room:
            sequence = share.waiting.first
            # A token of its former residence may be in flight: it must be appended before the sequence is computed anew.
            if sequence is None or sequence.last_step > self.last_committed_step:
                return
            allowance = builder.allowance(sequence)
            if not allowance or not (self.limits.enable_chunked_prefill or allowance == len(sequence.token_ids)):
                return
            if not self.registry.admit(sequence):
                return
            if sequence.queue_s is None:
                sequence.queue_s = now - sequence.request.arrived_at
                self.intake.begin(sequence, now)
            self._unreported += self.progress.admitted(sequence, now)
            builder.start(sequence)
            # All but the token that it samples behind may be cached, and the time for masks be over.
            if count := builder.allowance(sequence):
                builder.work(sequence, count)

    # What a step produced, and whose time is up.

    def _end_overdue(self, now: float) -> None:
        while (sequence := self.deadlines.pop_overdue(now)) is not None:
            self._end(sequence, "time")
            self._unreported.append((sequence.sequence_id, final_delta(sequence)))
        for request, error in self.intake.take_overdue(now):
            for sequence in list(request.sequences):
                self._end(sequence, "error")
                self._unreported.append((sequence.sequence_id, final_delta(sequence, error)))

    def _end(self, sequence: Sequence, reason: FinishReason, left_at: float | None = None) -> None:
        self.registry.end(sequence, reason)
        self.intake.leave(sequence, left_at)

    def _commit_shortage(self, step: Step, result: StepResult) -> Deltas:
        """Plan smaller steps, as far as each sequence still gets its token, and end what did not fit at all."""
        self.counters.divided_steps += 1
        if result.most_tokens is not None and self.limits.enable_chunked_prefill:
            self.step_tokens = min(self.step_tokens, max(result.most_tokens, self.limits.max_num_seqs))
        ended = [sequence for sequence in step.owners(result.failed_rows) if sequence.finish_reason is None]
        for sequence in ended:
            self._end(sequence, "error")
        return [(sequence.sequence_id, final_delta(sequence, OUT_OF_MEMORY)) for sequence in ended]

    def _commit_prompts(self, step: Step, result: StepResult, now: float) -> None:
        for sequence, num_tokens in step.chunks:
            if sequence.is_resident:
                self.registry.kv.commit(sequence, num_tokens)
                self._unreported += self.progress.computed(sequence, num_tokens, now)
        for row, entries in (result.prompt_logprobs or {}).items():
            sequence, start = step.scored[row]
            sequence.add_prompt_logprobs(start, entries)

    def _commit_pooled(self, step: Step, embeddings: Mapping[int, bytes]) -> Deltas:
        deltas: Deltas = []
        for row, embedding in embeddings.items():
            sequence = step.pooled[row]
            if sequence.finish_reason is None:
                self._end(sequence, "stop")
                deltas.append((sequence.sequence_id, pooled_delta(sequence, embedding)))
        return deltas

    def _commit_tokens(self, step: Step, result: StepResult, now: float) -> Deltas:
        for index, num_drafts in step.drafted:
            step.sampled[index].settle_drafts(num_drafts, len(result.token_ids[index]) - 1)
        deltas: Deltas = []
        num_further = 0
        all_logprobs = result.logprobs or repeat(None, len(step.sampled))
        for sequence, token_ids, logprobs in zip(step.sampled, result.token_ids, all_logprobs, strict=True):
            if sequence.only_reports_ids and len(token_ids) == 1 and token_ids[0] not in sequence.ending_ids:
                known = sequence.token_ids
                length = len(known) + 1
                if length < sequence.limit:
                    known += token_ids
                    if length > sequence.next_full and sequence.is_resident:
                        self.registry.kv.commit(sequence, length - 1)
                    deltas.append((sequence.sequence_id, TokenDelta(token_ids)))
                    continue
            if sequence.finish_reason is not None:
                self.counters.wasted(sequence, len(token_ids))
                continue
            delta, num_appended = self._commit_row(sequence, token_ids, logprobs, now)
            deltas.append((sequence.sequence_id, delta))
            num_further += num_appended - 1
        self.counters.generation_tokens += len(deltas) + num_further
        return deltas

    def _commit_row(
        self, sequence: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs] | None, now: float
    ) -> tuple[TokenDelta, int]:
        """Append the tokens of one sequence up to one that ends it; returns its delta and how many were appended."""
        appended, ending = append_tokens(sequence, token_ids)
        if sequence.is_resident:
            self.registry.kv.commit(sequence, len(sequence.token_ids) - 1)
        if ending is not None:
            if appended[-1] == NO_TOKEN:
                self.registry.kv.uncache(sequence)
            self._end(sequence, ending.reason)
            self.counters.wasted(sequence, len(token_ids) - len(appended))
        return delta_of(sequence, appended, ending, logprobs, now), len(appended)


__all__ = ["Deltas", "Scheduler", "SchedulerLimits"]
