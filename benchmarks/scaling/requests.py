"""What clients send: requests that arrive at random, and conversations whose turns share all that was said before.

Pure but for the random numbers that are passed in. Lengths are log-normal, as those of chats are found to be.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from math import log
from random import Random

import msgspec

from streamserve.routing.prefix_keys import PrefixKeys, prefix_keys

BLOCK_SIZE = 64
"""Tokens of a KV block: larger than a server's by default, so that prefixes have fewer keys to look up."""


class Request(msgspec.Struct, frozen=True):
    """One request.

    prompt         keys of its prompt's prefixes
    whole          the same of prompt and answer together, which a next turn begins with
    output_tokens  of the answer
    """

    prompt: PrefixKeys
    whole: PrefixKeys
    output_tokens: int


class Lengths(msgspec.Struct, frozen=True):
    """A distribution of lengths: log-normal around a median, cut off at both ends."""

    median: int
    sigma: float = 0.6
    least: int = 4
    most: int = 8192

    def draw(self, random: Random) -> int:
        """One length, in tokens."""
        return min(self.most, max(self.least, round(random.lognormvariate(log(self.median), self.sigma))))


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What conversations are like.

    num_applications    that have a system prompt each; the k-th is 1/k as popular as the first
    system_tokens       of a system prompt
    mean_turns          of a conversation, geometric; 1 for requests that no other follows
    user_tokens         of what a user adds in a turn
    output_tokens       of an answer
    think_s             seconds between an answer's end and the next turn, on average
    """

    num_applications: int
    system_tokens: int
    mean_turns: float
    user_tokens: Lengths
    output_tokens: Lengths
    think_s: float = 5.0


CHAT = Traffic(
    num_applications=40, system_tokens=1500, mean_turns=5, user_tokens=Lengths(120), output_tokens=Lengths(250, most=1024)
)
"""Applications with long instructions, people who ask again: most of a prompt has been computed before, somewhere."""

SINGLE = Traffic(
    num_applications=0, system_tokens=0, mean_turns=1, user_tokens=Lengths(500), output_tokens=Lengths(250, most=1024)
)
"""Prompts that share nothing."""


class Applications:
    """The system prompts of some traffic."""

    def __init__(self, traffic: Traffic, random: Random) -> None:
        self._prompts = [_text(traffic.system_tokens, random) for _ in range(traffic.num_applications)]
        self._weights = [1 / rank for rank in range(1, traffic.num_applications + 1)]

    def draw(self, random: Random) -> array[int]:
        """The system prompt of a new conversation."""
        return random.choices(self._prompts, self._weights)[0][:] if self._prompts else array("i")


def turns(traffic: Traffic, applications: Applications, random: Random) -> Iterator[Request]:
    """The requests of one conversation, each of which follows the answer to the one before."""
    for prompt, whole in texts(traffic, applications, random):
        yield Request(_keys(prompt), _keys(whole), len(whole) - len(prompt))


def texts(traffic: Traffic, applications: Applications, random: Random) -> Iterator[tuple[array[int], array[int]]]:
    """The turns of one conversation: the tokens of the prompt, and those of prompt and answer."""
    text = applications.draw(random)
    while True:
        prompt = text + _text(traffic.user_tokens.draw(random), random)
        text = prompt + _text(traffic.output_tokens.draw(random), random)
        yield prompt, text
        if random.random() < 1 / traffic.mean_turns:
            return


def conversations(traffic: Traffic, rate: float, seed: int) -> Iterator[tuple[float, Applications, Random]]:
    """When conversations begin, at random (Poisson), in seconds after the one before; and what makes each."""
    random = Random(seed)
    applications = Applications(traffic, random)
    while True:
        yield random.expovariate(rate), applications, Random(random.random())


def mixed_requests(random: Random, count: int = 256) -> list[Request]:
    """The offline workload of docs/PERFORMANCE.md: prompts and answers of 100 to 1024 tokens, all there from the start."""
    requests: list[Request] = []
    for _ in range(count):
        prompt, output_tokens = _text(random.randint(100, 1024), random), random.randint(100, 1024)
        requests.append(Request(_keys(prompt), _keys(prompt + _text(output_tokens, random)), output_tokens))
    return requests


def _keys(text: array[int]) -> PrefixKeys:
    return prefix_keys(text, block_size=BLOCK_SIZE)


def _text(num_tokens: int, random: Random) -> array[int]:
    """Tokens that come nowhere else."""
    return array("i", random.randbytes(4 * num_tokens))
