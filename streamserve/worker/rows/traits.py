"""A row's sampling parameters as each step needs them on the host: which path its lines take, and their lists.

Made once, when a sequence takes its row. Numbers that every row has live on the device (`RowTables`); this is the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from streamserve.types import GREEDY_TEMPERATURE, Sampling

MaskWords = npt.NDArray[np.uint32]

Biases = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]
"""Token ids, and what to add to their logits. Arrays, because each step copies them for each of its lines."""


class Choice(Enum):
    """How a line's token is chosen: the likeliest, by noise among all, by noise among what its restrictions keep."""

    GREEDY = "greedy"
    RANDOM = "random"
    RESTRICTED = "restricted"


@dataclass(frozen=True, slots=True)
class Traits:
    """What the host needs to know of a row to sample it.

    top_k          0 when off or no bound
    biases         token ids and what to add to their logits; -inf for one-token bad words
    bad_words      of two tokens and more
    allowed        mask of `allowed_token_ids`
    stop_ids       banned until `min_tokens` are generated
    has_extras     any of the lists, penalties or log-probabilities: its lines need a closer look in every step
    """

    choice: Choice
    top_k: int
    num_prompt_tokens: int
    is_penalised: bool
    logprobs: int | None
    prompt_logprobs: int | None
    biases: Biases
    bad_words: list[list[int]]
    allowed: MaskWords | None
    stop_ids: list[int]
    min_tokens: int
    has_extras: bool

    @property
    def is_on_device(self) -> bool:
        """The row's state on the device is all that sampling it takes."""
        return not self.has_extras and self.allowed is None and self.choice is not Choice.RESTRICTED


def read_traits(
    sampling: Sampling, num_prompt_tokens: int, vocab_size: int, *, like: tuple[Sampling, Traits] | None = None
) -> Traits:
    """Sort a row's parameters out. Token ids outside the vocabulary can't be sampled, so lists that name them lose nothing.

    like  another row's parameters and what they made: what is made of lists that both have is the same
    """
    shared = like[1] if like is not None and _have_same_lists(like[0], sampling) else None
    biases = _biases(sampling, vocab_size) if shared is None else shared.biases
    bad_words = [word for word in sampling.bad_words_token_ids if len(word) > 1 and 0 <= word[-1] < vocab_size]
    stop_ids = _known(sampling.stop_token_ids, vocab_size) if sampling.min_tokens else []
    is_penalised = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0 or sampling.repetition_penalty != 1.0
    allowed_ids = sampling.allowed_token_ids
    if shared is not None or allowed_ids is None:
        allowed = None if shared is None else shared.allowed
    else:
        allowed = make_mask(_known(allowed_ids, vocab_size), vocab_size)
    has_lists = bool(len(biases[0]) or bad_words or stop_ids) or allowed is not None
    top_k = effective_top_k(sampling.top_k, vocab_size)
    return Traits(
        choice=_choice(sampling, top_k),
        top_k=top_k,
        num_prompt_tokens=num_prompt_tokens,
        is_penalised=is_penalised,
        logprobs=sampling.logprobs,
        prompt_logprobs=sampling.prompt_logprobs,
        biases=biases,
        bad_words=bad_words,
        allowed=allowed,
        stop_ids=stop_ids,
        min_tokens=sampling.min_tokens,
        has_extras=has_lists or is_penalised or sampling.logprobs is not None,
    )


def effective_top_k(top_k: int, vocab_size: int) -> int:
    """0 where `top_k` keeps everything."""
    return top_k if 0 < top_k < vocab_size else 0


def make_mask(token_ids: list[int], vocab_size: int) -> MaskWords:
    """Bit t % 32 of word t // 32 set for each id."""
    bits = np.zeros(-(-vocab_size // 32) * 32, dtype=np.uint8)
    bits[token_ids] = 1
    return np.packbits(bits, bitorder="little").view("<u4")


def read_mask(words: bytes, vocab_size: int) -> MaskWords:
    """A mask as a plan carries it, at the vocabulary's width: tokens past its end are not allowed."""
    carried = np.frombuffer(words, dtype="<u4")
    mask = np.zeros(-(-vocab_size // 32), dtype="<u4")
    width = min(len(carried), len(mask))
    mask[:width] = carried[:width]
    return mask


def _choice(sampling: Sampling, top_k: int) -> Choice:
    if sampling.temperature < GREEDY_TEMPERATURE:
        return Choice.GREEDY
    if top_k or sampling.top_p < 1.0 or sampling.min_p > 0.0:
        return Choice.RESTRICTED
    return Choice.RANDOM


def _biases(sampling: Sampling, vocab_size: int) -> Biases:
    ids = _known(sampling.logit_bias, vocab_size)
    values = [sampling.logit_bias[token_id] for token_id in ids]
    banned = _known(sampling.banned_token_ids, vocab_size)
    return np.array(ids + banned, dtype=np.int32), np.array(values + [-np.inf] * len(banned), dtype=np.float32)


def _have_same_lists(one: Sampling, other: Sampling) -> bool:
    """Whether biases, bad words and allowed tokens are the same objects, as in the sequences of one request."""
    return (
        one.logit_bias is other.logit_bias
        and one.bad_words_token_ids is other.bad_words_token_ids
        and one.allowed_token_ids is other.allowed_token_ids
    )


def _known(token_ids: Iterable[int], vocab_size: int) -> list[int]:
    return [token_id for token_id in token_ids if 0 <= token_id < vocab_size]
