"""The library for asyncio programs: a model in this process, whose answers are async iterators.

    async with AsyncEngine(model="demo") as engine:
        async for delta in await engine.generate("Once upon a time", SamplingParams(max_tokens=64)):
            print(delta.text, end="", flush=True)

Runs on the event loop that entered the `async with`; the model runs on threads of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec

from streamserve.aio.daemon_thread import run_in_daemon_thread
from streamserve.checkpoint.config_values import need
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig, replace
from streamserve.engine.error_info import restore
from streamserve.engine.inline import InlineEngine, require_one_engine
from streamserve.errors import ConfigError, InvalidParameter, Unavailable, UnsupportedParameter
from streamserve.executor.base import Executor
from streamserve.executor.tuning import tune_after_loading, tune_before_loading
from streamserve.frontend import Frontend
from streamserve.text.chat_template import ChatMessage
from streamserve.text.grammars.grammar import GrammarCompiler
from streamserve.text.preparation import PreparedPrompt, Prompt
from streamserve.text.sampling_defaults import default_sampling_params
from streamserve.text.tokenizers.tokenizer import Tokenizer, tokenizer_of
from streamserve.text_stream import TextStream
from streamserve.types import EngineInfo, EngineStats, SamplingParams, TextDelta


class AsyncEngine:
    """A model for one event loop: use it in an `async with` block, or call `start` and `stop`.

    settings       fields of `EngineConfig`
    chat_template  Jinja source to use instead of the model's own
    allow_special_tokens_in_messages  as of `Frontend`
    max_logprobs   the largest `logprobs` of a request; -1 for no limit
    next_seed      makes the seeds of requests without one; random by default
    executor       runs the steps instead of this machine's device
    tune_process   change settings of the whole process that make a model on a CPU faster, as a server's engine process does:
                   how long OpenMP's threads spin, which holds cores that the program may need; what malloc returns to the
                   kernel; how long a thread may hold the interpreter (0.5 ms instead of 5: the first token of a short prompt
                   after 15 to 32 ms instead of 36 to 43). Off by default: the process stays as it is

    Raises `ConfigError` for settings that are unknown or don't fit together, and for a `data_parallel_size` above 1.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        config: EngineConfig | None = None,
        chat_template: str | None = None,
        allow_special_tokens_in_messages: bool = False,
        max_logprobs: int = 20,
        next_seed: Callable[[], int] | None = None,
        executor: Executor | None = None,
        tune_process: bool = False,
        **settings: Any,
    ) -> None:
        self.config = config_of(model, config, settings)
        require_one_engine(self.config)
        self._executor = executor
        self._tune_process = tune_process
        self._options: dict[str, Any] = {
            "chat_template": chat_template,
            "allow_special_tokens_in_messages": allow_special_tokens_in_messages,
            "max_logprobs": max_logprobs,
            "next_seed": next_seed,
        }
        self._engine: InlineEngine | None = None
        self._frontend: Frontend | None = None
        self._defaults: dict[str, Any] = {}

    async def start(self) -> EngineInfo:
        """Find and load the model. Raises `ConfigError` when it can't be loaded with these settings."""
        if self._engine is not None:
            raise RuntimeError("this engine runs already")
        checkpoint = await run_in_daemon_thread(partial(checkpoint_of, self.config))
        tokenizer = await run_in_daemon_thread(partial(tokenizer_of, self.config, checkpoint))
        self._defaults = default_sampling_params(checkpoint)
        grammars = GrammarCompiler(
            lambda: tokenizer, vocab_size=need(checkpoint.config, "vocab_size"), eos_token_ids=checkpoint.eos_token_ids
        )
        self._engine = InlineEngine(self.config, checkpoint, executor=self._executor, compile_constraint=grammars.compile)
        if self._tune_process:
            tune_before_loading(self.config, checkpoint)
        info = await self._engine.start()
        if self._tune_process:
            tune_after_loading()
        self._frontend = Frontend(self._engine, tokenizer, eos_token_ids=checkpoint.eos_token_ids, **self._options)
        return info

    async def stop(self) -> None:
        """End every stream and free the model. Idempotent."""
        engine, self._engine, self._frontend = self._engine, None, None
        if engine is not None:
            await engine.stop()

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def frontend(self) -> Frontend:
        """Raises `Unavailable` unless started."""
        if self._frontend is None:
            raise Unavailable("the engine was not started, or was stopped: use it inside `async with`")
        return self._frontend

    @property
    def info(self) -> EngineInfo:
        return self.frontend.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self.frontend.tokenizer

    @property
    def sampling_defaults(self) -> Mapping[str, Any]:
        """What the model's generation_config.json says of sampling parameters, by name; empty before `start`."""
        return self._defaults

    def default_sampling_params(self, **changes: Any) -> SamplingParams:
        """The sampling parameters of the model's generation_config.json, with `changes`."""
        return SamplingParams(**{**self._defaults, **changes})

    async def generate(
        self, prompt: Prompt | Mapping[str, Any], params: SamplingParams | None = None, **options: Any
    ) -> Generation:
        """Start generating after a text or token ids; returns once the request is in the engine's queue.

        params   None takes `default_sampling_params()`
        options  as `Frontend.prepare`: request_id, priority, cache_salt, add_special_tokens, clamp_max_tokens

        Raises `InvalidRequest` errors and `QueueFull`.
        """
        prepared = await self.frontend.prepare(unwrap_prompt(prompt), params or self.default_sampling_params(), **options)
        return await self.open([prepared])

    async def chat(
        self,
        messages: Sequence[ChatMessage],
        params: SamplingParams | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        **template_options: Any,
    ) -> Generation:
        """Start answering a conversation; `template_options` as `Frontend.render_chat`, the rest as `generate`."""
        text = self.frontend.render_chat(messages, **template_options)
        reasoning = self.frontend.reasoning_of(
            text, chat_template=template_options.get("chat_template"), has_tools=bool(template_options.get("tools"))
        )
        return await self.generate(text, params, **{"add_special_tokens": False, "reasoning": reasoning, **(options or {})})

    async def open(self, prompts: Sequence[PreparedPrompt]) -> Generation:
        """Start prompts made by `frontend.prepare`, all or none."""
        return Generation(await self.frontend.open(prompts))

    async def stats(self) -> EngineStats:
        return await self.frontend.engine.stats()


class Generation:
    """A running request: an async iterator of `TextDelta`.

    Leaving its `with` block or the loop over it aborts the request. A request that fails raises its error from the loop.
    """

    def __init__(self, stream: TextStream) -> None:
        self._stream = stream

    def abort(self) -> None:
        """End the request with reason "abort"; deltas generated before can still be read. Never blocks."""
        self._stream.abort()

    def close(self) -> None:
        """Abort the request unless it has finished. Idempotent, never blocks."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        delta = await anext(self._stream)
        if delta.error is not None:
            self.close()
            raise restore(delta.error)
        return delta


def config_of(model: str | None, config: EngineConfig | None, settings: Mapping[str, Any]) -> EngineConfig:
    """`config` with `model` and `settings` replaced, or a new configuration of them. Raises `ConfigError`."""
    unknown = sorted(settings.keys() - set(EngineConfig.__struct_fields__))
    if unknown:
        raise ConfigError(f"unknown setting {', '.join(unknown)}; known are {', '.join(EngineConfig.__struct_fields__)}")
    fields = dict(settings) if model is None else {**settings, "model": model}
    if config is not None:
        return replace(config, **fields)
    if model is None:
        raise ConfigError("name a model: a Hugging Face id, a local folder, a .gguf file, or 'demo'")
    try:
        return msgspec.convert(fields, EngineConfig)
    except msgspec.ValidationError as error:
        raise ConfigError(f"wrong setting: {error}") from error


def unwrap_prompt(prompt: Prompt | Mapping[str, Any]) -> Prompt:
    """The text or token ids of a prompt, which may be wrapped as `{"prompt": …}` or `{"prompt_token_ids": …}`.

    Raises `InvalidParameter`.
    """
    if isinstance(prompt, str | Sequence) and not isinstance(prompt, bytes | bytearray):
        return prompt
    if not isinstance(prompt, Mapping):
        raise InvalidParameter("prompt", f"must be a text or token ids, got {type(prompt).__name__}")
    for name in ("prompt_token_ids", "prompt"):
        if name in prompt:
            unknown = sorted(prompt.keys() - {"prompt_token_ids", "prompt"})
            if unknown:
                raise UnsupportedParameter(unknown[0], "a prompt is text or token ids")
            return unwrap_prompt(prompt[name])
    raise InvalidParameter("prompt", "must hold 'prompt' or 'prompt_token_ids'")
