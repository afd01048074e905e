"""Builds complete outputs from text deltas, as `LLM` returns them for a list of prompts.

Pure; knows no engine.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from streamserve.text.preparation import PreparedPrompt
from streamserve.types import (
    CompletionOutput,
    EmbeddingOutput,
    EmbeddingRequestOutput,
    Logprob,
    RequestOutput,
    TextDelta,
    TextLogprob,
)


class OutputBuilder:
    """The outputs of several prompts, growing delta by delta."""

    def __init__(self, prompts: Sequence[PreparedPrompt]) -> None:
        self.outputs = [_empty_output(prompt) for prompt in prompts]
        self._choices = [(request, output) for request in self.outputs for output in request.outputs]
        self._texts: list[list[str]] = [[] for _ in self._choices]
        self._running = [len(request.outputs) for request in self.outputs]
        self._request_of = [place for place, request in enumerate(self.outputs) for _ in request.outputs]

    def add(self, delta: TextDelta) -> int:
        """Add one delta; returns how many prompts it completed, 0 or 1."""
        request, output = self._choices[delta.index]
        self._texts[delta.index].append(delta.text)
        output.token_ids.extend(delta.token_ids)
        _add_logprobs(output, delta.logprobs)
        if delta.prompt_logprobs is not None:
            request.prompt_logprobs = [None if entry is None else by_token_id(entry) for entry in delta.prompt_logprobs]
        request.num_cached_tokens = max(request.num_cached_tokens, delta.cached_tokens)
        if delta.finish_reason is None:
            return 0
        output.text = "".join(self._texts[delta.index])
        output.finish_reason = delta.finish_reason
        output.stop_reason = delta.stop_reason
        place = self._request_of[delta.index]
        self._running[place] -= 1
        request.finished = not self._running[place]
        return int(request.finished)


def by_token_id(entry: TextLogprob) -> dict[int, Logprob]:
    """One position's log-probabilities in vLLM's form: the token itself and its likeliest alternatives, by id."""
    found = {entry.token_id: Logprob(entry.logprob, entry.rank, entry.text)}
    for rank, other in enumerate(entry.top, start=1):
        found.setdefault(other.token_id, Logprob(other.logprob, rank, other.text))
    return found


def _empty_output(prompt: PreparedPrompt) -> RequestOutput:
    wants_logprobs = prompt.params.logprobs is not None
    return RequestOutput(
        request_id=prompt.request_id,
        prompt=prompt.prompt,
        prompt_token_ids=prompt.prompt_token_ids,
        outputs=[
            CompletionOutput(
                index=index,
                text="",
                token_ids=[],
                logprobs=[] if wants_logprobs else None,
                cumulative_logprob=0.0 if wants_logprobs else None,
            )
            for index in range(len(prompt.specs))
        ],
        finished=False,
    )


def _add_logprobs(output: CompletionOutput, entries: list[TextLogprob] | None) -> None:
    if entries is None or output.logprobs is None:
        return
    output.logprobs.extend(by_token_id(entry) for entry in entries)
    output.cumulative_logprob = (output.cumulative_logprob or 0.0) + sum(entry.logprob for entry in entries)


def empty_embedding(prompt: PreparedPrompt) -> EmbeddingRequestOutput:
    """The output of a prompt whose vector has not come yet."""
    return EmbeddingRequestOutput(
        request_id=prompt.request_id,
        outputs=EmbeddingOutput(embedding=[]),
        prompt_token_ids=prompt.prompt_token_ids,
        finished=False,
    )


def fill_embedding(output: EmbeddingRequestOutput, delta: TextDelta) -> None:
    """Take the vector of a prompt out of its only delta."""
    output.outputs.embedding = array("f", delta.embedding or b"").tolist()
    output.num_cached_tokens = delta.cached_tokens
    output.finished = True
