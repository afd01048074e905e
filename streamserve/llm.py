"""Offline generation with vLLM's `LLM` interface: lists of prompts in, finished outputs in the same order out.

A synchronous interface to `AsyncEngine`, which runs on an event loop of its own (`loop_thread`). Safe to call from any thread.
"""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self

from msgspec import UNSET, UnsetType

from streamserve.async_engine import AsyncEngine, unwrap_prompt
from streamserve.errors import InvalidParameter
from streamserve.offline.arguments import engine_settings
from streamserve.offline.loop_thread import LoopThread
from streamserve.offline.outputs import OutputBuilder, empty_embedding, fill_embedding
from streamserve.offline.progress import Progress
from streamserve.text.chat_template import ChatMessage
from streamserve.text.preparation import MAX_SEED, PreparedPrompt, Prompt
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.types import EmbeddingRequestOutput, PoolingParams, ReasoningMarks, RequestOutput, SamplingParams

AnyPrompt = Prompt | Mapping[str, Any]
"""A text, token ids, `{"prompt": text}` or `{"prompt_token_ids": ids}`."""

_QUEUE, _QUEUE_TOKENS = 1 << 20, 1 << 40


class LLM:
    """A model for offline use.

        llm = LLM(model="demo")
        for output in llm.generate(["Hello, my name is", "The capital of France is"], SamplingParams(temperature=0.8)):
            print(output.prompt, output.outputs[0].text)

    Arguments are vLLM's, under vLLM's names; one that is not supported is refused by name with `ConfigError`. Without a
    seed in the sampling parameters, outputs depend on `seed` and on the order of calls only. Call `close`, use it in a `with`
    block, or let the program end.

    allow_special_tokens_in_messages  as `AsyncEngine`: `chat` reads special tokens written in messages as tokens
    tune_process  as `AsyncEngine`: change settings of the whole process that make a model on a CPU faster
    """

    def __init__(
        self,
        model: str,
        *,
        seed: int = 0,
        max_logprobs: int = 20,
        chat_template: str | None = None,
        allow_special_tokens_in_messages: bool = False,
        tune_process: bool = False,
        **arguments: Any,
    ) -> None:
        settings = {"max_queue": _QUEUE, "max_queue_tokens": _QUEUE_TOKENS, **engine_settings(arguments), "seed": seed}
        rng = random.Random(seed)
        self._engine = AsyncEngine(
            model,
            max_logprobs=max_logprobs,
            chat_template=chat_template,
            allow_special_tokens_in_messages=allow_special_tokens_in_messages,
            next_seed=lambda: rng.randrange(MAX_SEED),
            tune_process=tune_process,
            **settings,
        )
        self._request_ids = map(str, count())
        self._loop = LoopThread(self._engine.stop)
        self._finalizer = weakref.finalize(self, self._loop.close)
        try:
            self._loop.call(self._engine.start())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the model. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def get_tokenizer(self) -> Tokenizer:
        return self._engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """The sampling parameters of the model's generation_config.json, which are the default of every call."""
        return self._engine.default_sampling_params()

    def generate(
        self,
        prompts: AnyPrompt | Sequence[AnyPrompt] | None = None,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        prompt_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Finished outputs, one per prompt, in the order of the prompts.

        prompts           one or more texts or lists of token ids
        sampling_params   one for all, or one per prompt; by default `get_default_sampling_params()`
        prompt_token_ids  token ids in place of `prompts`
        use_tqdm          show a progress bar
        priority          one per prompt, lower first, under the priority policy

        Raises `InvalidRequest` errors before anything runs; a request that fails while running raises its error.
        """
        if (prompts is None) == (prompt_token_ids is None):
            raise InvalidParameter("prompts", "give either prompts or prompt_token_ids")
        listed = _as_list(prompts if prompt_token_ids is None else prompt_token_ids)
        return self._run([unwrap_prompt(prompt) for prompt in listed], sampling_params, use_tqdm, priority=priority)

    def chat(
        self,
        messages: Sequence[ChatMessage] | Sequence[Sequence[ChatMessage]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers to one or more conversations, in their order; the rest as `generate`, template options as vLLM's."""
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        texts: list[Prompt] = [
            self._engine.frontend.render_chat(
                conversation,  # type: ignore[arg-type]
                chat_template=chat_template,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                tools=tools,
                variables=chat_template_kwargs,
            )
            for conversation in conversations
        ]
        reasoning = [
            self._engine.frontend.reasoning_of(str(text), chat_template=chat_template, has_tools=bool(tools)) for text in texts
        ]
        return self._run(texts, sampling_params, use_tqdm, add_special_tokens=False, reasoning=reasoning)

    def embed(
        self,
        prompts: AnyPrompt | Sequence[AnyPrompt],
        *,
        pooling_params: PoolingParams | None = None,
        use_tqdm: bool = True,
    ) -> list[EmbeddingRequestOutput]:
        """A vector for each prompt, in their order, made as `pooler_config` and the model's files say.

        prompts         as of `generate`
        pooling_params  of all of them

        Raises as `generate`.
        """
        params = pooling_params or PoolingParams()
        listed = [unwrap_prompt(prompt) for prompt in _as_list(prompts)]
        return self._loop.call(self._embed(listed, params, use_tqdm))

    async def _embed(self, prompts: list[Prompt], params: PoolingParams, use_tqdm: bool) -> list[EmbeddingRequestOutput]:
        frontend = self._engine.frontend
        prepared = await frontend.prepare_all(
            prompts,
            SamplingParams(max_tokens=1, detokenize=False, truncate_prompt_tokens=params.truncate_prompt_tokens),
            request_ids=[next(self._request_ids) for _ in prompts],
            pooling=frontend.pooling(dimensions=params.dimensions, normalize=params.normalize),
        )
        outputs = [empty_embedding(prompt) for prompt in prepared]
        if not prepared:
            return outputs
        with await self._engine.open(prepared) as generation, _progress(prepared, use_tqdm) as progress:
            async for delta in generation:
                fill_embedding(outputs[delta.index], delta)
                progress.advance(0, finished=1)
        return outputs

    def _run(
        self,
        prompts: list[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        *,
        add_special_tokens: bool = True,
        priority: Sequence[int] | None = None,
        reasoning: Sequence[ReasoningMarks | UnsetType | None] | None = None,
    ) -> list[RequestOutput]:
        params = _one_each("sampling_params", sampling_params or self.get_default_sampling_params(), len(prompts))
        priorities = _one_each("priority", 0 if priority is None else priority, len(prompts))
        marks = [UNSET] * len(prompts) if reasoning is None else reasoning
        return self._loop.call(self._outputs(prompts, params, priorities, marks, add_special_tokens, use_tqdm))

    async def _outputs(
        self,
        prompts: list[Prompt],
        params: Sequence[SamplingParams],
        priorities: Sequence[int],
        reasoning: Sequence[ReasoningMarks | UnsetType | None],
        add_special_tokens: bool,
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        prepared = [
            await self._engine.frontend.prepare(
                prompt,
                params[place],
                request_id=next(self._request_ids),
                priority=priorities[place],
                add_special_tokens=add_special_tokens,
                clamp_max_tokens=True,
                reasoning=reasoning[place],
            )
            for place, prompt in enumerate(prompts)
        ]
        return await self._finish(prepared, use_tqdm)

    async def _finish(self, prepared: list[PreparedPrompt], use_tqdm: bool) -> list[RequestOutput]:
        builder = OutputBuilder(prepared)
        if not prepared:
            return builder.outputs
        with await self._engine.open(prepared) as generation, _progress(prepared, use_tqdm) as progress:
            async for delta in generation:
                progress.advance(len(delta.token_ids), finished=builder.add(delta))
        return builder.outputs


def _progress(prepared: list[PreparedPrompt], shown: bool) -> Progress:
    return Progress(len(prepared), sum(len(prompt.prompt_token_ids) for prompt in prepared), shown=shown)


def _as_list(prompts: Any) -> list[Any]:
    """A list of prompts, also of a single one; a list of integers is one prompt."""
    if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
        return [prompts]
    listed = list(prompts)
    return [listed] if listed and isinstance(listed[0], int) else listed


def _one_each(name: str, value: Any, size: int) -> Sequence[Any]:
    """A value for each of `size` prompts: `value` itself if it is a sequence, else repeated."""
    if not isinstance(value, Sequence):
        return [value] * size
    if len(value) != size:
        raise InvalidParameter(name, f"has {len(value)} entries for {size} prompts")
    return value
