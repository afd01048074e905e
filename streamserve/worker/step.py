"""The step: what a rank does with a plan.

`StepRunner.step` runs on the launch thread and never waits for the device; `PendingStep.wait` runs on the wait thread. In the
stream's order a step applies row deltas, gathers its inputs from the rows, runs the model, samples, writes the ids back into
the rows, and copies them to the host. A step that only decodes is replayed whole where its size was captured
(`graphs.decode_graphs`); of one with prompt tokens, up to a size, the model alone is (`graphs.prompt_graphs`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamserve.models.architectures.base import CausalModel
from streamserve.scheduling.plan import Plan, RowWork, StepResult
from streamserve.types import TokenLogprobs
from streamserve.worker.device.base import Device, Event
from streamserve.worker.graphs.decode_graphs import Capture, DecodeGraphs
from streamserve.worker.graphs.prompt_graphs import MAX_PROMPTS, PromptGraphs
from streamserve.worker.rows.inputs import StepWork, WorkUploader, gather
from streamserve.worker.rows.rows import Rows
from streamserve.worker.sampling.logprobs import HostLogprobs, PromptLogprobs, download, prompt_logprobs
from streamserve.worker.sampling.sampler import SamplingUploader
from streamserve_kernels import sample, scatter_sampled


@dataclass(frozen=True, slots=True)
class PendingStep:
    """A step that was launched: what the host knows of it, and what is still being copied."""

    step: int
    event: Event
    token_ids: Tensor | None
    logprob_requests: list[int | None]
    logprobs: HostLogprobs | None
    prompt_logprobs: list[PromptLogprobs]

    def wait(self) -> StepResult:
        """Block until the device has run the step. Call once, on the wait thread."""
        self.event.wait()
        return StepResult(
            step=self.step,
            token_ids=[] if self.token_ids is None else self.token_ids.tolist(),
            logprobs=self._read_logprobs(),
            prompt_logprobs={item.row: item.read() for item in self.prompt_logprobs} or None,
        )

    def _read_logprobs(self) -> list[TokenLogprobs | None] | None:
        if self.logprobs is None:
            return None
        entries = iter(self.logprobs.read([num_top for num_top in self.logprob_requests if num_top is not None]))
        return [None if num_top is None else next(entries) for num_top in self.logprob_requests]


class StepRunner:
    """Runs plans on a loaded model and an allocated cache."""

    def __init__(self, device: Device, model: CausalModel, rows: Rows, kv_caches: list[Tensor]) -> None:
        self._device = device
        self._model = model
        self._rows = rows
        self._kv_caches = kv_caches
        self._work = WorkUploader(device, rows.limits.max_num_seqs + MAX_PROMPTS)
        self._sampling = SamplingUploader(device, rows)
        self._graphs = DecodeGraphs(device, model, rows, kv_caches, self._work)
        self._prompt_graphs = PromptGraphs(device, model, rows, kv_caches, self._work)

    @torch.inference_mode()
    def capture(self, max_num_batched_tokens: int) -> None:
        """Capture decode steps and small steps with prompts in them, so that `step` replays them from here on."""
        with self._device.stream():
            self._prompt_graphs.capture(max_num_batched_tokens)
            self._graphs.capture()

    def warm_up(self) -> None:
        """Run steps that touch no sequence, a prompt and a decode, so that the first real ones find all initialised."""
        for start, count in ((0, 2), (2, 1)):
            self.step(Plan(0, [], [], [RowWork(self._rows.tables.padding_row, start, count, True)])).wait()

    @torch.inference_mode()
    def step(self, plan: Plan) -> PendingStep:
        """Launch one step; plans run in the order given."""
        with self._device.stream():
            self._rows.apply(plan)
            token_ids = self._graphs.replay_again(plan)
            if token_ids is not None:
                return self._replayed(plan, token_ids)
            capture = self._graphs.find(plan.work)
            if capture is not None:
                return self._replay(plan, capture)
            work, hidden = self._prompt_graphs.run(plan.work) or self._run(plan.work)
            prompts = self._prompt_logprobs(work.items, hidden)
            return self._sample(plan, work, hidden[work.sample_tokens] if len(plan.sampled) < len(hidden) else hidden, prompts)

    def _run(self, items: list[RowWork]) -> tuple[StepWork, Tensor]:
        work = self._work.send(items)
        return work, self._model(gather(self._rows.tables, work, self._rows.limits), self._kv_caches)

    def _replay(self, plan: Plan, capture: Capture) -> PendingStep:
        if not self._rows.scored and not self._sampling.needs_upload(plan.work):
            return self._replayed(plan, self._graphs.replay(capture, plan.work))
        work, lines = self._graphs.send(capture, plan.work), len(plan.work)
        hidden = capture.forward()[:lines]
        prompts = self._prompt_logprobs(plan.work, hidden)
        work = replace(work, sample_rows=work.sample_rows[:lines], positions=work.positions[:lines])
        return self._sample(plan, work, hidden, prompts)

    def _replayed(self, plan: Plan, token_ids: Tensor) -> PendingStep:
        host_ids = self._device.download(token_ids)
        return PendingStep(plan.step, self._device.record(), host_ids, [], None, [])

    def _sample(self, plan: Plan, work: StepWork, hidden: Tensor, prompts: list[PromptLogprobs]) -> PendingStep:
        """hidden  [lines, hidden_size], of the sampled rows"""
        sampled = plan.sampled
        if not sampled:
            return PendingStep(plan.step, self._device.record(), None, [], None, prompts)
        logits = self._model.logits(hidden)
        parameters = self._sampling.send(sampled, work)
        tokens = sample(logits, parameters)
        scatter_sampled(self._rows.tables, work.sample_rows, work.positions, tokens.token_ids)
        logprobs, requests = None, []
        if parameters.logprobs is not None and tokens.logprobs is not None:
            requests = [self._rows.traits(item.row).logprobs for item in sampled]
            logprobs = download(self._device, tokens.token_ids[parameters.logprobs.lines], tokens.logprobs)
        token_ids = self._device.download(tokens.token_ids)
        return PendingStep(plan.step, self._device.record(), token_ids, requests, logprobs, prompts)

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
