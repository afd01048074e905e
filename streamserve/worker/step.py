"""Runs plans: one step on the device each.

`StepRunner.step` runs on the launch thread and never waits for the device; `PendingStep.wait` runs on the wait thread. In the
stream's order a step applies row deltas, gathers its inputs from the rows, runs the model, samples, writes the ids back into
the rows, and copies them to the host. A step that only decodes is replayed whole where its size was captured
(`graphs.decode_graphs`); of one with prompt tokens, up to a size, the model alone is (`graphs.prompt_graphs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamserve.fail_points import fail_point, stall_point
from streamserve.models.architectures.base import CausalModel
from streamserve.scheduling.plan import Plan, RowWork, StepResult
from streamserve.worker.device.base import Device, Event
from streamserve.worker.divided_steps import Pending, StepDivider
from streamserve.worker.graphs.decode_graphs import Capture, DecodeGraphs
from streamserve.worker.graphs.prompt_graphs import MAX_PROMPTS, PromptGraphs
from streamserve.worker.pooling import PooledVector, PromptPooling
from streamserve.worker.rows.inputs import StepWork, WorkUploader, gather
from streamserve.worker.rows.rows import Rows
from streamserve.worker.sampling.logprobs import POSITIONS_AT_A_TIME, PromptLogprobs, download, prompt_logprobs
from streamserve.worker.sampling.results import DraftedCounts, HostSample
from streamserve.worker.sampling.sampler import SamplingUploader
from streamserve.worker.step_memory import StepMemory, TriedMemory
from streamserve_kernels import accept_drafts, sample, scatter_sampled

DEVICE_FAILURE = "device_failure"
"""The fail point of a step after which the device may be in any state."""

STEP_STALL = "step_stall"
"""The fail point of a step that never ends."""


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step in flight, and the copies of its results to the host."""

    step: int
    event: Event
    sample: HostSample | None
    prompt_logprobs: list[PromptLogprobs]
    pooled: Sequence[PooledVector] = ()

    def wait(self) -> StepResult:
        """Block until the device has run the step. Call once, on the wait thread."""
        self.event.wait()
        return StepResult(
            step=self.step,
            token_ids=[] if self.sample is None else self.sample.read_tokens(),
            logprobs=None if self.sample is None else self.sample.read_logprobs(),
            prompt_logprobs={item.row: item.read() for item in self.prompt_logprobs} or None,
            embeddings={item.row: item.read() for item in self.pooled} or None,
        )


class StepRunner:
    """Runs plans on a loaded model and an allocated cache."""

    def __init__(
        self,
        device: Device,
        model: CausalModel,
        rows: Rows,
        kv_caches: list[Tensor],
        memory: StepMemory | None = None,
        divider: StepDivider | None = None,
    ) -> None:
        """memory  of steps; by default that of one rank
        divider  launches a plan's work once its rows are up to date, whole or in pieces; by default whole as long as it fits
        """
        self._memory: StepMemory = memory or TriedMemory()
        self._divider = divider or StepDivider()
        self._device = device
        self._model = model
        self._rows = rows
        self._kv_caches = kv_caches
        self._work = WorkUploader(device, rows.limits.max_num_seqs + MAX_PROMPTS)
        self._sampling = SamplingUploader(device, rows)
        self._pooling = PromptPooling(device, model, rows)
        self._graphs = DecodeGraphs(device, model, rows, kv_caches, self._work)
        self._prompt_graphs = PromptGraphs(device, model, rows, kv_caches, self._work)

    @torch.inference_mode()
    def capture(self, max_num_batched_tokens: int) -> None:
        """Capture decode steps and small steps with prompts in them, so that `step` replays them from here on."""
        with self._device.stream():
            self._prompt_graphs.capture(max_num_batched_tokens)
            self._graphs.capture()

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Run steps that touch no sequence, a mixed one and a decode, so that the first real ones find all initialised."""
        decode, chunk = (
            RowWork(self._rows.tables.padding_row, 0, count, num_sampled) for count, num_sampled in ((1, 1), (2, 0))
        )
        with self._device.stream():
            self._memory.prepare()
            for work in ([decode, chunk], [decode]):
                self._launch(Plan(0, [], [], work)).wait()

    @torch.inference_mode()
    def step(self, plan: Plan) -> Pending:
        """Launch one step; steps run in the order launched."""
        with self._device.stream():
            self._rows.apply(plan)
            return self._divider.launch(plan, self._launch)

    def _launch(self, plan: Plan) -> PendingStep:
        """Launch the work of a plan that was applied. Allocates nothing once rows have their tokens."""
        fail_point(DEVICE_FAILURE, RuntimeError, "a failure that a test asked for")
        stall_point(STEP_STALL)
        # What is replayed whole has its memory.
        token_ids = self._graphs.replay_again(plan)
        if token_ids is not None:
            return self._replayed(plan, token_ids)
        capture, is_scored = self._graphs.find(plan.work), bool(self._rows.scored)
        if capture is not None and not is_scored and not self._sampling.needs_upload(plan.work):
            return self._replayed(plan, self._graphs.replay(capture, plan.work))
        num_lines = sum(item.num_sampled for item in plan.work)
        if is_scored:
            num_scored = max((item.count for item in plan.work if item.row in self._rows.scored), default=0)
            num_lines += min(num_scored, POSITIONS_AT_A_TIME)
        with self._memory.of_step(plan, num_lines):
            return self._compute(plan) if capture is None else self._compute_captured(plan, capture)

    def _compute(self, plan: Plan) -> PendingStep:
        work, hidden = self._prompt_graphs.run(plan.work) or self._run(plan.work)
        prompts = self._prompt_logprobs(work.items, hidden)
        pooled = self._pooling.compute(work.items, hidden)
        pending = self._sample(plan, work, hidden, prompts)
        self._pooling.keep(pooled)
        return replace(pending, pooled=pooled.vectors)

    def _run(self, items: list[RowWork]) -> tuple[StepWork, Tensor]:
        work = self._work.send(items)
        return work, self._model(gather(self._rows.tables, work, self._rows.limits), self._kv_caches)

    def _compute_captured(self, plan: Plan, capture: Capture) -> PendingStep:
        """The model is replayed; what rows with special needs are sampled with is not."""
        work, lines = self._graphs.send(capture, plan.work), len(plan.work)
        hidden = capture.forward()[:lines]
        prompts = self._prompt_logprobs(plan.work, hidden)
        work = replace(work, sample_tokens=work.sample_tokens[:lines], sample_rows=work.sample_rows[:lines])
        return self._sample(plan, work, hidden, prompts)

    def _replayed(self, plan: Plan, token_ids: Tensor) -> PendingStep:
        sample = HostSample(self._device.download(token_ids))
        return PendingStep(plan.step, self._device.record(), sample, [])

    def _sample(self, plan: Plan, work: StepWork, hidden: Tensor, prompts: list[PromptLogprobs]) -> PendingStep:
        """hidden  [tokens, hidden_size]"""
        sampled = plan.sampled
        if not sampled:
            return PendingStep(plan.step, self._device.record(), None, prompts)
        tables = self._rows.tables
        # Before the logits: a kernel that reads places ahead of its turn must find them written.
        places = work.places(tables)
        lines = hidden if len(places) == len(hidden) else hidden[work.sample_tokens]
        logits = self._model.logits(lines)
        parameters = self._sampling.send(sampled, work.sample_rows, places)
        tokens = sample(logits, parameters)
        logprobs, requests = None, []
        if parameters.logprobs is not None and tokens.logprobs is not None:
            requests = [self._rows.traits(item.row).logprobs for item in sampled]
            logprobs = download(self._device, tokens.token_ids[parameters.logprobs.lines], tokens.logprobs)
        token_ids = self._device.download(tokens.token_ids)
        drafted = self._append(sampled, work, places, tokens.token_ids)
        return PendingStep(plan.step, self._device.record(), HostSample(token_ids, drafted, requests, logprobs), prompts)

    def _append(self, sampled: list[RowWork], work: StepWork, places: Tensor, token_ids: Tensor) -> DraftedCounts | None:
        """Write what was sampled into the rows; where they have drafts, as far as those agree."""
        tables, lines = self._rows.tables, work.drafted
        if lines is None:
            scatter_sampled(tables, work.sample_rows, places, token_ids)
            return None
        accepted = accept_drafts(tables, lines.rows, lines.line_start, token_ids, most=lines.most)
        return DraftedCounts([item.num_sampled for item in sampled], self._device.download(accepted))

    def _prompt_logprobs(self, work: list[RowWork], hidden: Tensor) -> list[PromptLogprobs]:
        if not self._rows.scored:
            return []
        found, first = [], 0
        for item in work:
            if item.row in self._rows.scored:
                states, traits = hidden[first : first + item.count], self._rows.traits(item.row)
                entry = prompt_logprobs(self._device, self._rows.tables, self._model.logits, states, item, traits)
                found += [entry] if entry is not None else []
            first += item.count
        return found
