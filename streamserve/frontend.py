"""The API side of one engine: prompts in, text out.

Owns tokenizer, chat template and preparation; used by the server, `AsyncEngine` and `LLM`. Runs on the caller's event loop;
long texts are tokenised on threads. Knows neither HTTP nor where its engine runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import checkpoint
from msgspec import UNSET, UnsetType, structs

from streamserve.engine.base import Engine
from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.text.chat_template import ChatMessage, ChatTemplate, ModelTemplates
from streamserve.text.end_of_sequence import end_of_sequence_ids
from streamserve.text.mark_tokens import MarkTokens
from streamserve.text.parsing.dialects.registry import dialect_of
from streamserve.text.preparation import Preparation, PreparedPrompt, Prompt, random_seed
from streamserve.text.sequence_text import SequenceText
from streamserve.text.stop_strings import StopIndex
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.text_stream import TextStream
from streamserve.types import ANYONE, EngineInfo, Pooling, ReasoningMarks, SamplingParams, Tenant

T = TypeVar("T")

LONG_TEXT = 8192
"""Characters, or token ids, from which a text is worked on by a thread; for shorter ones the hop costs more than the work."""

CHARS_PER_CHOICE = 32
"""Characters that take as long to tokenise as the rest of the work on a choice takes."""

CHOICES_PER_TURN = 256
"""Choices of one request that are made ready before other tasks have a turn."""

LONG_TEXTS_AT_A_TIME = 4
"""Each takes forty times its size in memory."""


class Frontend:
    """Requests for one started engine.

    eos_token_ids  tokens that end a text, by the model's configurations; the tokenizer's own `eos_token` ends one too
    chat_template  Jinja source, or name of one of the model's, to use instead of the model's own
    next_seed      makes the seeds of requests without one; random by default
    allow_special_tokens_in_messages  special tokens written out in messages, tools and variables of a chat count; by default
                                      they are plain text, and only the template writes special tokens
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        eos_token_ids: Sequence[int] = (),
        max_logprobs: int = 20,
        chat_template: str | None = None,
        next_seed: Callable[[], int] | None = None,
        allow_special_tokens_in_messages: bool = False,
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.mark_tokens = MarkTokens(tokenizer)
        self.kept_out: frozenset[str] = frozenset() if allow_special_tokens_in_messages else tokenizer.vocabulary.special_texts
        self._templates = ModelTemplates(tokenizer.chat_templates, tokenizer.special_tokens, chat_template, self.kept_out)
        self._long_texts = CapacityLimiter(LONG_TEXTS_AT_A_TIME)
        self._preparation = Preparation(
            tokenizer=tokenizer,
            max_model_len=engine.info.max_model_len,
            vocab_size=engine.info.vocab_size,
            eos_token_ids=end_of_sequence_ids(eos_token_ids, tokenizer, engine.info.vocab_size),
            max_logprobs=max_logprobs,
            next_seed=next_seed or random_seed,
        )

    @property
    def info(self) -> EngineInfo:
        return self.engine.info

    def check_length(self, prompt: Prompt) -> None:
        """Refuse a prompt that does not fit, as far as that can be told at once. Raises `ContextLengthExceeded`."""
        self._preparation.check_length(prompt)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, without blocking the event loop.

        Raises `ContextLengthExceeded` for one that is refused as a prompt before it is tokenised.
        """
        self._preparation.check_length(text)
        return await self._off_loop(partial(self.tokenizer.encode, text, add_special_tokens=add_special_tokens), len(text))

    async def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special ones included, without blocking the event loop."""
        return await self._off_loop(partial(self.tokenizer.decode, token_ids, skip_special_tokens=False), len(token_ids))

    async def entries(self, token_ids: Sequence[int]) -> list[str]:
        """The vocabulary's entries of token ids, as they are written there, without blocking the event loop."""
        token = self.tokenizer.vocabulary.token
        return await self._off_loop(lambda: [token(token_id) or "" for token_id in token_ids], len(token_ids))

    async def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str | None = None,
        add_special_tokens: bool = True,
        priority: int = 0,
        tenant: Tenant = ANYONE,
        cache_salt: str = "",
        clamp_max_tokens: bool = False,
        shown_special_ids: frozenset[int] = frozenset(),
        reasoning: ReasoningMarks | UnsetType | None = UNSET,
    ) -> PreparedPrompt:
        """Tokenise and check a prompt; arguments and errors as `Preparation.prepare`. Nothing is admitted yet.

        request_id  names the sequences, so it must be unique while they run; random by default
        """
        [prepared] = await self.prepare_all(
            [prompt],
            params,
            request_ids=[request_id or uuid4().hex],
            add_special_tokens=add_special_tokens,
            priority=priority,
            tenant=tenant,
            cache_salt=cache_salt,
            clamp_max_tokens=clamp_max_tokens,
            shown_special_ids=shown_special_ids,
            reasoning=reasoning,
        )
        return prepared

    async def prepare_all(
        self, prompts: Sequence[Prompt], params: SamplingParams, *, request_ids: Sequence[str], **options: Any
    ) -> list[PreparedPrompt]:
        """`prepare` several prompts of one request, which share their parameters."""

        def prepare() -> list[PreparedPrompt]:
            prepared: list[PreparedPrompt] = []
            for prompt, request_id in zip(prompts, request_ids, strict=True):
                like = prepared[0] if prepared else None
                prepared.append(self._preparation.prepare(prompt, params, request_id=request_id, like=like, **options))
            return prepared

        return await self._off_loop(prepare, _size(prompts, params))

    def reasoning_of(
        self, prompt: str, *, chat_template: str | None = None, has_tools: bool = False
    ) -> ReasoningMarks | UnsetType | None:
        """How the answer to a rendered conversation reasons, by its template; `UNSET` where that is not known."""
        template = self.template(chat_template, has_tools=has_tools)
        dialect = dialect_of(template.source, response_template=self.tokenizer.response_template)
        if not dialect.can_reason:
            return UNSET
        return self.mark_tokens.reasoning(dialect, dialect.thinks(prompt, None), may_call=has_tools)

    def pooling(self, *, dimensions: int | None = None, normalize: bool | None = None) -> Pooling:
        """How a prompt is pooled: the model's own way but for what is given. Raises `InvalidParameter`."""
        info = self.info
        if dimensions is not None and not 1 <= dimensions <= info.embedding_size:
            raise InvalidParameter("dimensions", f"must be between 1 and {info.embedding_size}, got {dimensions}")
        return Pooling(info.pooling.kind, info.pooling.normalize if normalize is None else normalize, dimensions)

    def render_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """The prompt text of a conversation; options and errors as `ChatTemplate.render`.

        Tokenise it with `add_special_tokens=False`: templates write the special tokens themselves.
        """
        return self.template(chat_template, has_tools=bool(tools)).render(messages, tools=tools, **options)

    def template(self, override: str | None = None, *, has_tools: bool = False) -> ChatTemplate:
        """The model's template for conversations with or without tools, or the one whose source or name is `override`.

        Raises `UnsupportedParameter` when there is none, `InvalidParameter` when the override has a fault.
        """
        template = self._templates.choose(has_tools=has_tools) if override is None else self._templates.override(override)
        if template is None:
            raise UnsupportedParameter("messages", "this model has no chat template; start the server with --chat-template")
        return template

    @property
    def tool_template(self) -> ChatTemplate | None:
        """The model's template for conversations with tools; None when it has no template."""
        return self._templates.choose(has_tools=True)

    def unembedded_template_token(self) -> str | None:
        """A token that the model's chat template puts into every prompt and that the model has no embedding of.

        None when there is none, and for a template that refuses the plainest of conversations.
        """
        template = self._templates.choose()
        if template is None:
            return None
        with suppress(InvalidParameter):
            prompt = self.tokenizer.encode(template.render([{"role": "user", "content": "a"}]), add_special_tokens=False)
            if (token_id := self._preparation.unembedded(prompt)) is not None:
                return self.tokenizer.vocabulary.token(token_id)
        return None

    def special_ids_of(self, marks: Sequence[str]) -> dict[str, int]:
        """The ids of those marks that are special tokens, whose text is skipped by default."""
        token_ids = {mark: self.tokenizer.vocabulary.token_id(mark) for mark in marks}
        return {
            mark: token_id
            for mark, token_id in token_ids.items()
            if token_id is not None and token_id in self.tokenizer.special_ids
        }

    async def open(self, prompts: Sequence[PreparedPrompt], *, patience_s: float | None = None) -> TextStream:
        """Admit prepared prompts, all or none; choices are numbered output index + prompt index * n.

        patience_s  as of `SequenceSpec`

        Use the stream in a `with` block: leaving it aborts choices that still run. Raises what `Engine.open` raises.
        """
        choices = [(prompt, spec) for prompt in prompts for spec in prompt.specs]
        distinct = {id(prompt.params): prompt.params for prompt in prompts}
        stops = {key: StopIndex(params.stop_strings) for key, params in distinct.items()}
        texts: list[SequenceText] = []
        for index, (prompt, spec) in enumerate(choices):
            texts.append(
                SequenceText(
                    self.tokenizer,
                    prompt.params,
                    spec,
                    eos_token_ids=prompt.eos_token_ids,
                    shown_special_ids=prompt.shown_special_ids,
                    index=index,
                    stops=stops[id(prompt.params)],
                )
            )
            if index % CHOICES_PER_TURN == CHOICES_PER_TURN - 1:
                await checkpoint()
        specs = [spec for _, spec in choices]
        if patience_s is not None:
            specs[0] = structs.replace(specs[0], patience_s=patience_s)
        return TextStream(self.engine, await self.engine.open(specs), texts)

    async def _off_loop(self, work: Callable[[], T], size: int) -> T:
        """Do work on a text or ids of this size: on a thread where it is long."""
        return await to_thread.run_sync(work, limiter=self._long_texts) if size >= LONG_TEXT else work()

    async def generate(self, prompt: Prompt, params: SamplingParams, **options: Any) -> TextStream:
        """`prepare` and `open` of one prompt."""
        return await self.open([await self.prepare(prompt, params, **options)])


def _size(prompts: Sequence[Prompt], params: SamplingParams) -> int:
    """Roughly what it takes to prepare prompts, in characters; nothing for what is refused at once."""
    if not isinstance(params, SamplingParams):
        return 0
    lists = (params.allowed_token_ids, params.stop_token_ids, params.logit_bias, params.bad_words)
    in_lists = sum(len(each) for each in lists if isinstance(each, Sized))
    return sum(map(len, prompts)) + in_lists + CHARS_PER_CHOICE * len(prompts) * params.n
