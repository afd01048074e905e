"""The requests of a benchmark: random prompts of given lengths, the same ones for the same seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

import click

WORDS = """
river stone window autumn market paper garden signal winter bridge letter forest music harbour number silver table morning
question engine story valley doctor island circle summer copper history kitchen evening planet station village answer mountain
machine ocean picture teacher weather journey library captain pattern surface distance language building account reason moment
colour
""".split()  # noqa: SIM905


@dataclass(frozen=True, slots=True)
class Span:
    """A length, or a range of lengths that are equally likely; both ends included."""

    low: int
    high: int

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"

    def as_json(self) -> int | str:
        """A number when it is one length only."""
        return self.low if self.low == self.high else str(self)


class SpanType(click.ParamType[Span]):
    """`128` or `100:1024` on the command line."""

    name = "tokens"

    def convert(self, value: str | Span, param: click.Parameter | None, ctx: click.Context | None) -> Span:
        if isinstance(value, Span):
            return value
        low, _, high = value.partition(":")
        try:
            span = Span(int(low), int(high or low))
        except ValueError:
            self.fail(f"{value!r}: write a number of tokens, or LOW:HIGH", param, ctx)
        if not 1 <= span.low <= span.high:
            self.fail(f"{value!r}: must be at least 1, and LOW at most HIGH", param, ctx)
        return span


@dataclass(frozen=True, slots=True)
class BenchRequest:
    """One request to an engine: its prompt's token ids and how many tokens to generate."""

    prompt_token_ids: list[int]
    output_len: int


@dataclass(frozen=True, slots=True)
class Workload:
    """A number of requests, and their lengths."""

    count: int
    input_len: Span
    output_len: Span

    def requests(self, *, vocab_size: int, seed: int, variation: int = 0) -> list[BenchRequest]:
        """The requests. Lengths depend on `seed` alone; every `variation` has other tokens, so that no prefix cache helps.

        Ids stay clear of both ends of the vocabulary, where special tokens live.
        """
        lengths, tokens = random.Random(seed), random.Random(f"{seed}/{variation}")
        low, high = vocab_size // 10, max(vocab_size // 10 + 1, vocab_size // 2)
        return [
            BenchRequest(
                [tokens.randrange(low, high) for _ in range(self.input_len.draw(lengths))], self.output_len.draw(lengths)
            )
            for _ in range(self.count)
        ]


def words(count: int, rng: random.Random) -> list[str]:
    """So many common words, which make a text of about as many tokens, for servers that take no token ids."""
    return [rng.choice(WORDS) for _ in range(count)]
