"""Structured outputs: the language of a request, compiled into a mask of allowed tokens per step.

Grammars are llguidance's (https://github.com/guidance-ai/llguidance): JSON schema, regular expressions, Lark and GBNF
grammars over bytes, lexed and parsed lazily. Compiling runs on threads, within limits of size, work and time, and is cached;
the compiled state then lives on the engine's event loop, one copy per sequence. Knows no scheduler: it satisfies its
`Constraint` structurally.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from time import thread_time
from typing import Any

import msgspec
from anyio import to_thread
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from llguidance.gbnf_to_lark import gbnf_to_lark

from streamserve.checkpoint.config_values import need
from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.text.end_of_sequence import end_of_sequence_ids
from streamserve.text.grammars.deep_threads import DeepThreads
from streamserve.text.grammars.digit_bound import DigitBound, DigitTable
from streamserve.text.grammars.structural_tag import structural_tag_lark
from streamserve.text.schemas.call_schema import JSON_STYLE
from streamserve.text.schemas.pattern_properties import impossible_property
from streamserve.text.schemas.references import with_local_references
from streamserve.text.schemas.weakening import without_annotations
from streamserve.text.tokenizers.tokenizer import Tokenizer, tokenizer_of
from streamserve.types import StructuredOutputs

MAX_SOURCE_CHARS = 1 << 17
"""The longest schema, expression or grammar that is compiled."""

MAX_GBNF_CHARS = 1 << 15
"""The longest GBNF grammar: its translator is Python, which holds the engine's interpreter lock, and slow with many rules."""

COMPILE_TIMEOUT_S = 10.0

STACK_BYTES = 512 << 20
"""The library recurses into rules and references; the longest chain that fits a source takes half of this."""

_DECODER = json.JSONDecoder()
_EMBEDDED_SCHEMA = re.compile(r"%json\s*(?=\{)")
_LARK = re.compile(r"^[^\S\n]*(%llguidance\b|start\s*:)", re.MULTILINE)

_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,
    # A mask at this limit takes 11 ms, in which no step is planned; at 20 000 it took 131.
    "step_max_items": 8_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class GrammarConstraint:
    """The state of one sequence in its language; a `scheduling.constraint.Constraint`.

    size_bytes     of a mask
    eos_token_ids  end-of-sequence ids
    digits         bounds runs of digits, where the language is JSON
    spent_s        processor seconds that its masks have taken
    """

    def __init__(
        self, matcher: LLMatcher, size_bytes: int, eos_token_ids: Sequence[int], digits: DigitBound | None = None
    ) -> None:
        self._digits = digits
        self._matcher = matcher
        self._size_bytes = size_bytes
        self._eos_token_ids = eos_token_ids
        self.spent_s = 0.0

    def bitmask(self) -> bytes:
        """The tokens allowed next, as little-endian int32 words; an end of sequence only where the language may end."""
        started_s = thread_time()
        mask: bytes = self._matcher.compute_bitmask()[: self._size_bytes]
        self.spent_s += thread_time() - started_s
        # After an error the library allows the end of sequence, which would look like success: make `accept` raise it instead.
        if self._matcher.is_error():
            return _all_but(self._size_bytes, self._eos_token_ids)
        return mask if self._digits is None else self._digits.bounded(mask)

    def accept(self, token_id: int) -> None:
        """Advance by one token; raises `ValueError` when the language doesn't allow it, or has become too complex."""
        if not self._matcher.consume_token(token_id):
            raise ValueError(_reason(self._matcher.get_error()))
        if self._digits is not None:
            self._digits.accept(token_id)

    @property
    def is_complete(self) -> bool:
        """True once nothing may follow."""
        return bool(self._matcher.is_stopped())


class GrammarCompiler:
    """Compiles for one model.

    tokenizer      called once, on a thread, for the first grammar
    vocab_size     of the model's logits; may exceed the tokenizer's
    eos_token_ids  tokens that end a text, by the model's configurations; the tokenizer's own `eos_token` ends one too
    cache_size     compiled grammars kept, least recently used ones dropped
    num_compiled   grammars compiled so far
    """

    def __init__(
        self,
        tokenizer: Callable[[], Tokenizer],
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        cache_size: int = 128,
        max_threads: int = 2,
        timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        self._load_tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._configured_ends = tuple(eos_token_ids)
        self._cache: OrderedDict[bytes, LLMatcher] = OrderedDict()
        self._cache_size = cache_size
        self._threads = DeepThreads(max_threads, timeout_s=timeout_s, stack_bytes=STACK_BYTES)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._loaded: _Tokens | None = None
        self.num_compiled = 0

    @property
    def cached(self) -> int:
        """How many compiled grammars are cached."""
        return len(self._cache)

    async def compile(self, outputs: StructuredOutputs) -> GrammarConstraint:
        """A fresh constraint for one sequence.

        Raises `InvalidParameter` when the language can't be compiled in time, `QueueFull` while too many others are compiled.
        """
        # Before the timeout of a compilation begins: loading is not the request's own work.
        loaded = self._loaded
        if loaded is None:
            loaded = await to_thread.run_sync(self._load, abandon_on_cancel=True)
        if loaded.tokenizer is None:
            raise UnsupportedParameter("structured_outputs", "this model has no end-of-sequence token")
        key = msgspec.json.encode(outputs)
        matcher = self._cache.get(key)
        if matcher is None:
            matcher = await self._compile_in_thread(partial(_compile, loaded.tokenizer, loaded.special, outputs))
            self.num_compiled += 1
        self._cache[key] = matcher
        self._cache.move_to_end(key)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        digits = DigitBound(loaded.digits) if loaded.digits is not None and _holds_json(outputs) else None
        return GrammarConstraint(matcher.deep_copy(), -(-self._vocab_size // 32) * 4, loaded.eos_token_ids, digits)

    async def _compile_in_thread(self, compile: Callable[[], LLMatcher]) -> LLMatcher:
        try:
            return await self._threads.run(compile)
        except TimeoutError:
            raise InvalidParameter(
                "structured_outputs", f"took longer than {self._timeout_s:g} s to compile: simplify it"
            ) from None

    def _load(self) -> _Tokens:
        with self._lock:
            if self._loaded is None:
                tokenizer = self._load_tokenizer()
                ends = list(end_of_sequence_ids(self._configured_ends, tokenizer, self._vocab_size))
                self._loaded = _Tokens.from_tokenizer(tokenizer, self._vocab_size, ends) if ends else _Tokens(None, ends)
            return self._loaded


@dataclass(frozen=True)
class _Tokens:
    """A model's tokens for the library; no tokenizer for a model whose texts never end.

    special  ids of special tokens by their text
    """

    tokenizer: LLTokenizer | None
    eos_token_ids: list[int]
    digits: DigitTable | None = None
    special: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_tokenizer(cls, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: list[int]) -> _Tokens:
        vocabulary = _Vocabulary(tokenizer, vocab_size, eos_token_ids)
        in_library_form = LLTokenizer(TokenizerWrapper(vocabulary), eos_token=eos_token_ids)
        return cls(in_library_form, eos_token_ids, DigitTable(vocabulary.tokens), vocabulary.special)


def _compile(tokenizer: LLTokenizer, special: Mapping[str, int], outputs: StructuredOutputs) -> LLMatcher:
    source = grammar_source(outputs, special)
    matcher = LLMatcher(tokenizer, source, log_level=0, limits=LLParserLimits(**_LIMITS))
    # The first mask costs the most: computed here, on a thread, instead of between two steps of all sequences.
    tried = matcher.deep_copy()
    tried.compute_bitmask()
    for each in (matcher, tried):
        if each.is_error():
            raise InvalidParameter("structured_outputs", f"can't be compiled: {_reason(each.get_error())}")
    for schema in _schemas(source):
        if (name := impossible_property(tokenizer, schema)) is not None:
            raise InvalidParameter(
                "structured_outputs", f"property {name!r} contradicts a pattern of patternProperties that it matches"
            )
    return matcher


class _Vocabulary:
    """A tokenizer as llguidance wraps it: the bytes of every id, and a function that encodes."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = eos_token_ids[0]
        bos_token_id, special_ids = tokenizer.bos_token_id, {*tokenizer.special_ids, *eos_token_ids}
        # The library indexes its tokens by these ids unchecked.
        self.bos_token_id = None if bos_token_id is None or bos_token_id >= vocab_size else bos_token_id
        self.special_token_ids = sorted(token_id for token_id in special_ids if token_id < vocab_size)
        entries = {token_id: tokenizer.vocabulary.token(token_id) for token_id in self.special_token_ids}
        self.special = {text: token_id for token_id, text in entries.items() if text}
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)


def compiler_for(config: EngineConfig, checkpoint: Checkpoint) -> Callable[[StructuredOutputs], Any]:
    """The compiler of an engine process, which loads its own tokenizer; a `CompileConstraint`."""
    load = partial(tokenizer_of, config, checkpoint)
    return GrammarCompiler(
        load, vocab_size=need(checkpoint.config, "vocab_size"), eos_token_ids=checkpoint.eos_token_ids
    ).compile


def grammar_source(outputs: StructuredOutputs, special: Mapping[str, int]) -> str:
    """A request's language in llguidance's notation. Raises `InvalidParameter` when it is too long or malformed.

    special  ids of special tokens by their text
    """
    try:
        source = _source(outputs, special)
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidParameter("structured_outputs", f"can't be compiled: {error}") from error
    if len(source) > MAX_SOURCE_CHARS:
        raise InvalidParameter("structured_outputs", f"is too long: {len(source)} characters, at most {MAX_SOURCE_CHARS}")
    return source


def _holds_json(outputs: StructuredOutputs) -> bool:
    """Whether numbers come from a schema; a client's own expression says itself how many digits it wants."""
    is_json = outputs.json is not None or outputs.json_object is not None or outputs.structural_tag is not None
    return is_json or "%json" in (outputs.grammar or "")


def _schemas(source: str) -> Iterator[Mapping[str, Any]]:
    """The JSON schemas in a grammar of the library's: it is one, or is in Lark and has some, as those of tool calls have."""
    if source.startswith("{"):
        schemas = [grammar.get("json_schema") for grammar in json.loads(source)["grammars"]]
        yield from (schema for schema in schemas if isinstance(schema, Mapping))
        return
    for place in _EMBEDDED_SCHEMA.finditer(source):
        with suppress(ValueError):  # in a literal or a comment
            yield _DECODER.raw_decode(source, place.end())[0]


def _schema(schema: Any) -> Any:
    """A schema that may come as text, with references that lead to the same places wherever it stands."""
    schema = json.loads(schema) if isinstance(schema, str) else schema
    return with_local_references(without_annotations(schema)) if isinstance(schema, Mapping) else schema


def _source(outputs: StructuredOutputs, special: Mapping[str, int]) -> str:
    if outputs.json is not None:
        return str(LLMatcher.grammar_from_json_schema(_schema(outputs.json), overrides=JSON_STYLE))
    if outputs.json_object is not None:
        if not outputs.json_object:
            raise ValueError("json_object must be true")
        return str(LLMatcher.grammar_from_json_schema({"type": "object"}, overrides=JSON_STYLE))
    if outputs.regex is not None:
        return str(LLMatcher.grammar_from_regex(outputs.regex))
    if outputs.choice is not None:
        if not outputs.choice:
            raise ValueError("choice must hold at least one string")
        return str(LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in outputs.choice)))
    if outputs.structural_tag is not None:
        return str(LLMatcher.grammar_from_lark(structural_tag_lark(outputs.structural_tag, special)))
    return str(LLMatcher.grammar_from_lark(_lark(outputs.grammar or "")))


def _lark(grammar: str) -> str:
    """A Lark grammar as it is, a GBNF one translated. Raises `ValueError`."""
    if _LARK.search(grammar):
        return grammar
    if len(grammar) > MAX_GBNF_CHARS:
        raise ValueError(f"a GBNF grammar may have {MAX_GBNF_CHARS} characters, this one has {len(grammar)}: write it in Lark")
    try:
        return str(gbnf_to_lark(grammar))
    except Exception as error:  # The translator raises bare ones: no root rule, a rule missing or there twice.
        raise ValueError(str(error)) from error


def _reason(message: str) -> str:
    """The library's message without the dump of its state and the repeated grammar."""
    return message.partition("\n<")[0].strip()[:500] or "it is too complex"


def _all_but(size_bytes: int, token_ids: Sequence[int]) -> bytes:
    mask = bytearray(b"\xff" * size_bytes)
    for token_id in token_ids:
        mask[token_id // 8] &= ~(1 << token_id % 8)
    return bytes(mask)
