"""One replica: a server of batched steps with a queue, a KV cache and a prefix cache, as the scheduler of an engine plans them.

A process of simpy. Decodes come first in a step, then prompts that have begun, then admissions, up to the step's token budget;
a step lasts what was measured. Steps that only decode are taken together until something changes, so that hundreds of replicas
can be simulated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any

import msgspec
import simpy

from benchmarks.scaling.kv_cache import KvCache
from benchmarks.scaling.requests import Request
from benchmarks.scaling.step_time import Calibration, StepTime
from streamserve.routing.prefix_keys import PrefixKeys


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of an engine, under its flags' names."""

    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    max_queue: int = 4096


class Sequence:
    """One request on one replica; times are of the simulation, in seconds.

    first_token_at, ended_at  None until then
    cached_tokens             of the prompt, that were in the prefix cache
    ended                     succeeds at the end
    """

    def __init__(self, env: simpy.Environment, request: Request) -> None:
        self.request = request
        self.arrived_at = env.now
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.ended = env.event()
        self.cached_tokens = 0
        self.num_generated = 0
        self.num_preemptions = 0
        self.num_uncomputed = 0
        self.num_keys_held = 0
        self.turn = 0

    @property
    def num_tokens(self) -> int:
        """Of prompt and answer so far; not brought up to date while it decodes."""
        return self.request.prompt.num_tokens + self.num_generated

    @property
    def num_left(self) -> int:
        """Tokens to generate."""
        return self.request.output_tokens - self.num_generated


class Replica:
    """Runs sequences until the simulation ends.

    cache          its KV cache
    num_steps      steps so far
    num_generated  tokens of all its sequences so far
    """

    def __init__(self, env: simpy.Environment, calibration: Calibration, limits: Limits) -> None:
        self._env = env
        self._step_time = StepTime(calibration)
        self._overhead_s = calibration.overhead_ms / 1e3
        self._limits = limits
        self._arrived: list[Sequence] = []
        self._planned_without: list[Sequence] = []
        self._waiting: deque[Sequence] = deque()
        self._prefilling: deque[Sequence] = deque()
        # By the step that each ends with.
        self._decoding: list[tuple[int, int, Sequence]] = []
        self._context = 0
        self._turns = count()
        self._arrival = env.event()
        self.cache = KvCache(calibration.kv_tokens)
        self.num_steps = 0
        self.num_generated = 0
        env.process(self._run())

    @property
    def load(self) -> int:
        """Sequences that it has, running or waiting."""
        return len(self._decoding) + len(self._prefilling) + self._num_waiting

    @property
    def _num_waiting(self) -> int:
        return len(self._waiting) + len(self._planned_without) + len(self._arrived)

    def submit(self, request: Request) -> Sequence | None:
        """Queue a request; None when too many wait already."""
        if self._num_waiting >= self._limits.max_queue:
            return None
        sequence = Sequence(self._env, request)
        self._arrived.append(sequence)
        if not self._arrival.triggered:
            self._arrival.succeed()
        return sequence

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            self._take_in()
            self._admit()
            self._preempt()
            self._arrival = self._env.event()
            if self._prefilling:
                yield from self._mixed_step()
            elif self._decoding:
                yield from self._decode_steps()
            else:
                yield self._arrival

    def _take_in(self) -> None:
        """Queue what arrived before the step that has just ended began: the next one was planned then, while that ran."""
        self._waiting.extend(self._planned_without)
        self._planned_without, self._arrived = self._arrived, []
        if not (self._decoding or self._prefilling or self._waiting):
            self._waiting.extend(self._planned_without)
            self._planned_without = []

    def _admit(self) -> None:
        """Move sequences from the queue to the rows, as long as there is room for their prompts."""
        while self._waiting and len(self._decoding) + len(self._prefilling) < self._limits.max_num_seqs:
            sequence, prompt = self._waiting[0], self._waiting[0].request.prompt
            num_cached = self.cache.cached(prompt)
            room = sequence.num_tokens - self.cache.held(prompt, num_cached) + len(self._decoding)
            if room > self.cache.num_free and (self._decoding or self._prefilling):
                return
            self._waiting.popleft()
            self.cache.hold(prompt, num_cached)
            self.cache.take(sequence.num_tokens - _end(prompt, num_cached))
            sequence.num_keys_held = num_cached
            # The last token is computed in any case, for its logits.
            cached_tokens = min(_end(prompt, num_cached), sequence.num_tokens - 1)
            sequence.num_uncomputed = sequence.num_tokens - cached_tokens
            if not sequence.num_preemptions:
                sequence.cached_tokens = cached_tokens
            sequence.turn = next(self._turns)
            self._prefilling.append(sequence)

    def _preempt(self) -> None:
        """Send the rows that were admitted last back to the queue until the next token of all others fits."""
        while len(self._decoding) > 1 and self.cache.num_free < len(self._decoding):
            last = max(self._decoding, key=lambda row: row[1])
            self._decoding.remove(last)
            heapify(self._decoding)
            end_step, _, sequence = last
            sequence.num_generated = sequence.request.output_tokens - (end_step - self.num_steps)
            sequence.num_preemptions += 1
            self._context -= sequence.num_tokens
            self._give_back(sequence, sequence.request.prompt)
            self._waiting.appendleft(sequence)

    def _mixed_step(self) -> Generator[simpy.Event, Any, None]:
        """One step with prompts: every decoding row has a token of the budget, prompts share the rest."""
        left = budget = self._limits.max_num_batched_tokens - len(self._decoding)
        computed: list[Sequence] = []
        for sequence in self._prefilling:
            tokens = min(sequence.num_uncomputed, left)
            sequence.num_uncomputed -= tokens
            left -= tokens
            if not sequence.num_uncomputed:
                computed.append(sequence)
            if not left:
                break
        yield self._env.timeout(self._step_time.step_s(len(self._decoding), self._context, budget - left))
        self._advance(1)
        for sequence in computed:
            self._prefilling.remove(sequence)
            self._begin_decoding(sequence)

    def _decode_steps(self) -> Generator[simpy.Event, Any, None]:
        """Decoding steps until a row ends, the cache is full, or a request arrives; at least one."""
        rows, context, began_at = len(self._decoding), self._context, self._env.now
        most = max(1, min(self._decoding[0][0] - self.num_steps, self.cache.num_free // rows))
        if self._planned_without:
            most = 1
        duration_s = self._duration_s(rows, context, most)
        yield self._env.timeout(duration_s) | self._arrival
        elapsed_s = self._env.now - began_at
        num_steps = most
        if elapsed_s < duration_s:
            num_steps = self._steps_by(rows, context, elapsed_s, most)
            duration_s = self._duration_s(rows, context, num_steps)
            yield self._env.timeout(max(0.0, duration_s - elapsed_s))
        self._advance(num_steps)

    def _duration_s(self, rows: int, context: int, num_steps: int) -> float:
        """Of decoding steps in a row, each with one more token of context for each row."""
        all_context = num_steps * context + rows * num_steps * (num_steps - 1) // 2
        return num_steps * self._step_time.weights_s(rows) + all_context * self._step_time.context_s

    def _steps_by(self, rows: int, context: int, elapsed_s: float, most: int) -> int:
        """How many steps have begun by then, of `most`."""
        low, high = 1, most
        while low < high:
            middle = (low + high) // 2
            if self._duration_s(rows, context, middle) >= elapsed_s:
                high = middle
            else:
                low = middle + 1
        return low

    def _advance(self, num_steps: int) -> None:
        """Each decoding row has so many tokens more; rows that have all of theirs end."""
        self.num_steps += num_steps
        self.num_generated += num_steps * len(self._decoding)
        self._context += num_steps * len(self._decoding)
        self.cache.take(num_steps * len(self._decoding))
        while self._decoding and self._decoding[0][0] <= self.num_steps:
            _, _, sequence = heappop(self._decoding)
            sequence.num_generated = sequence.request.output_tokens
            self._context -= sequence.num_tokens
            self._end(sequence)

    def _begin_decoding(self, sequence: Sequence) -> None:
        """The step that computed the end of its prompt has sampled a token, too."""
        if sequence.first_token_at is None:
            sequence.first_token_at = self._env.now + self._overhead_s
        self._store(sequence, sequence.request.prompt)
        sequence.num_generated += 1
        self.num_generated += 1
        self.cache.take(1)
        if sequence.num_left:
            self._context += sequence.num_tokens
            heappush(self._decoding, (self.num_steps + sequence.num_left, sequence.turn, sequence))
        else:
            self._end(sequence)

    def _end(self, sequence: Sequence) -> None:
        """Keep prompt and answer for a next turn, and report the end."""
        self._store(sequence, sequence.request.whole)
        self._give_back(sequence, sequence.request.whole)
        sequence.ended_at = self._env.now + self._overhead_s
        sequence.ended.succeed()

    def _store(self, sequence: Sequence, prefix: PrefixKeys) -> None:
        """Let others have the computed tokens of a prefix, of which the sequence has had some keys already."""
        before, num_keys = sequence.num_keys_held, len(prefix.keys)
        self.cache.take(_end(prefix, before) - _end(prefix, num_keys))
        self.cache.hold(prefix, num_keys)
        self.cache.release(prefix, before)
        sequence.num_keys_held = num_keys

    def _give_back(self, sequence: Sequence, prefix: PrefixKeys) -> None:
        """Release all that a sequence holds."""
        self.cache.release(prefix, sequence.num_keys_held)
        self.cache.take(_end(prefix, sequence.num_keys_held) - sequence.num_tokens)
        sequence.num_keys_held = 0


def _end(prefix: PrefixKeys, num_keys: int) -> int:
    """The tokens that the first keys stand for."""
    return prefix.ends[num_keys - 1] if num_keys else 0
