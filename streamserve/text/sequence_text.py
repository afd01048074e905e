"""Turns one sequence's token deltas into text deltas: text, logprobs with text, stop strings, the finish reason.

Runs on the reader's event loop, one per sequence. Pure: it neither reads nor closes the stream; a stop string is reported in
the delta, at which the reader closes the stream.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from streamserve.text.detokenizer import Detokenizer, detokenizer_for
from streamserve.text.prompt_logprobs import PromptLogprobs
from streamserve.text.stop_strings import StopIndex, StopStrings
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.types import SamplingParams, SequenceSpec, TextDelta, TextLogprob, TokenDelta, TokenLogprobs


class SequenceText:
    """Text of one sequence, delta by delta.

    stops          an index of the request's stop strings to share; made if there is none
    eos_token_ids  not reported as stop reasons, unless the request names them
    shown_special_ids  special tokens that have text though the request skips special tokens
    index          which choice of the request this is

    With `spec.generated_token_ids` set, the text continues after that of those tokens.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        spec: SequenceSpec,
        *,
        eos_token_ids: Sequence[int] = (),
        shown_special_ids: frozenset[int] = frozenset(),
        index: int = 0,
        stops: StopIndex | None = None,
    ) -> None:
        self.index = index
        self._tokenizer = tokenizer
        self._params = params
        self._stop_ids = frozenset(spec.sampling.stop_token_ids)
        self._silent_stop_ids = frozenset(eos_token_ids) - frozenset(params.stop_token_ids or ())
        self._detokenizer = _detokenizer(tokenizer, params, spec, shown_special_ids) if params.detokenize else None
        stops = StopIndex(params.stop_strings) if stops is None else stops
        self._stops = StopStrings(stops, include_in_output=params.include_stop_str_in_output) if stops else None
        # Decodes the next token, for requests that need nothing but its text; None for all others.
        self._single_token_text = self._detokenizer.push if self._detokenizer is not None and self._stops is None else None
        self._num_tokens = 0
        self._pending: TokenDelta | None = None
        self._is_finished = False
        for token_id in spec.generated_token_ids:
            self._text_of(token_id)

    def push(self, delta: TokenDelta) -> TextDelta | None:
        """The text delta of these tokens; None when no text is ready yet, and the tokens are part of a later delta.

        Nothing follows a delta with `finish_reason`: a stop string in the middle of `delta` drops the rest of it.
        """
        single_token_text = self._single_token_text
        if single_token_text is not None and self._pending is None and delta.is_single_token:
            text = single_token_text(delta.token_ids[0])
            if text:
                return TextDelta(text, delta.token_ids, index=self.index)
            self._pending = delta
            return None
        if self._is_finished:
            return None
        if delta.is_progress_only:
            return TextDelta("", index=self.index, progress=delta.progress)
        text, stop, used = self._read(delta)
        if stop is not None:
            logprobs = None if delta.logprobs is None else delta.logprobs[:used]
            delta = msgspec.structs.replace(
                delta, token_ids=delta.token_ids[:used], logprobs=logprobs, finish_reason="stop", stop_reason=None, error=None
            )
        elif delta.finish_reason is not None:
            text += self._rest()
        if self._pending is not None:
            delta, self._pending = self._pending.then(delta), None
        self._is_finished = delta.finish_reason is not None
        if not (text or self._is_finished or self._detokenizer is None):
            self._pending = delta
            return None
        return self._text_delta(text, delta, stop)

    def _read(self, delta: TokenDelta) -> tuple[str, str | None, int]:
        """The text of a delta's tokens up to a stop string; that string; and how many tokens were read."""
        token_ids = delta.token_ids
        # The token that ends a sequence is reported but has no text.
        shown = token_ids[:-1] if delta.finish_reason is not None and self._ends_on_silent_token(delta) else token_ids
        text = ""
        for used, token_id in enumerate(shown, start=1):
            piece, stop = self._text_of(token_id)
            text += piece
            if stop is not None:
                return text, stop, used
        return text, None, len(token_ids)

    def _text_of(self, token_id: int) -> tuple[str, str | None]:
        if self._detokenizer is None:
            return "", None
        text = self._detokenizer.push(token_id)
        if self._stops is None:
            return text, None
        self._num_tokens += 1
        return self._stops.push(text, armed=self._num_tokens > self._params.min_tokens) if text else ("", None)

    def _ends_on_silent_token(self, delta: TokenDelta) -> bool:
        if delta.finish_reason != "stop" or not delta.token_ids or self._params.include_stop_str_in_output:
            return False
        return delta.token_ids[-1] in self._stop_ids

    def _rest(self) -> str:
        """The text held back until the end of the sequence."""
        text = "" if self._detokenizer is None else self._detokenizer.finish()
        if self._stops is None:
            return text
        shown, _ = self._stops.push(text, armed=False)
        return shown + self._stops.finish()

    def _text_delta(self, text: str, delta: TokenDelta, stop: str | None) -> TextDelta:
        stop_id = None if delta.stop_reason in self._silent_stop_ids else delta.stop_reason
        return TextDelta(
            text=text,
            token_ids=delta.token_ids,
            logprobs=None if delta.logprobs is None else [self._logprob(entry) for entry in delta.logprobs],
            prompt_logprobs=None if delta.prompt_logprobs is None else PromptLogprobs(delta.prompt_logprobs, self._logprob),
            finish_reason=delta.finish_reason,
            stop_reason=stop_id if stop is None else stop,
            cached_tokens=delta.cached_tokens,
            error=delta.error,
            index=self.index,
            queue_s=delta.queue_s,
            progress=delta.progress,
            embedding=delta.embedding,
        )

    def _logprob(self, entry: TokenLogprobs) -> TextLogprob:
        top = [self._one(token_id, logprob) for token_id, logprob in entry.top]
        return self._one(entry.token_id, entry.logprob, entry.rank, top)

    def _one(self, token_id: int, logprob: float, rank: int | None = None, top: list[TextLogprob] | None = None) -> TextLogprob:
        tokenizer = self._tokenizer
        return TextLogprob(token_id, tokenizer.token_text(token_id), tokenizer.token_bytes(token_id), logprob, rank, top or [])


def _detokenizer(tokenizer: Tokenizer, params: SamplingParams, spec: SequenceSpec, shown: frozenset[int]) -> Detokenizer:
    return detokenizer_for(
        tokenizer,
        spec.prompt_token_ids,
        skip_special_tokens=params.skip_special_tokens,
        shown_special_ids=shown,
        spaces_between_special_tokens=params.spaces_between_special_tokens,
    )
