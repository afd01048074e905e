"""A device that computes plans on the oracle's model, with rows and a paged cache that hold exactly what a real one's would.

It attends to what its block tables point at, so a wrong slot, a stale row, a block given away too early or a false prefix hit
yields a wrong token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from streamserve.scheduling.plan import Plan, RowWork, StepResult
from streamserve.types import Pooling, Sampling, TokenLogprobs
from tests.scheduling.oracle import allowed_tokens, draw, logprobs_of, pooled, state_after


@dataclass
class Row:
    token_ids: dict[int, int]
    num_tokens: int
    num_prompt_tokens: int
    tables: list[dict[int, int]]
    sampling: Sampling
    pooling: Pooling | None
    states: list[bytes] = field(default_factory=list)


@dataclass
class Device:
    """Runs plans in the order given.

    cache  slot -> the layer group that wrote it, the position, and the model's state after it
    """

    block_size: int
    windows: tuple[int | None, ...] = (None,)
    rows: dict[int, Row] = field(default_factory=dict)
    cache: dict[int, tuple[int, int, bytes]] = field(default_factory=dict)

    def run(self, plan: Plan) -> StepResult:
        for start in plan.starts:
            tokens = dict(enumerate(start.token_ids))
            tables: list[dict[int, int]] = [{} for _ in self.windows]
            self.rows[start.row] = Row(tokens, len(tokens), start.num_prompt_tokens, tables, start.sampling, start.pooling)
        for growth in plan.growths:
            table = self.rows[growth.row].tables[growth.group]
            assert not table or growth.first == max(table) + 1
            table.update(enumerate(growth.block_ids, growth.first))
        for drafts in plan.drafts:
            row = self.rows[drafts.row]
            row.token_ids |= dict(enumerate(drafts.token_ids, row.num_tokens))
        assert len({work.row for work in plan.work}) == len(plan.work), "a row appears twice"
        counts = [work.count for work in plan.work]
        assert counts == [1] * counts.count(1) + [count for count in counts if count > 1], "decodes do not come first"
        states = [self._forward(work) for work in plan.work]
        return self._sample(plan, states)

    def _forward(self, work: RowWork) -> list[bytes]:
        """Write the cache at each position; the model's state after each of them."""
        row, start = self.rows[work.row], self._start(work)
        state = self._attend(row, start)
        states = []
        for position in range(start, start + work.count):
            state = state_after(state, row.token_ids[position])
            for group in range(len(self.windows)):
                self.cache[self._slot(row, group, position)] = (group, position, state)
            states.append(state)
        return states

    def _start(self, work: RowWork) -> int:
        """Where a row's work begins: what samples ends with its tokens and drafts, wherever the host thinks that is at most."""
        if not work.num_sampled:
            return work.start
        start = self.rows[work.row].num_tokens + work.num_sampled - 1 - work.count
        assert start <= work.start, "the host plans for fewer tokens than the row has"
        return start

    def _attend(self, row: Row, num_tokens: int) -> bytes:
        """Read back every token before this step's that its first one sees; garbage when any of them isn't there."""
        state = b""
        for position in range(num_tokens):
            state = state_after(state, row.token_ids[position])
            for group, window in enumerate(self.windows):
                is_seen = window is None or position > num_tokens - window
                if is_seen and self.cache.get(self._slot(row, group, position)) != (group, position, state):
                    return b"garbage"
        return state

    def _slot(self, row: Row, group: int, position: int) -> int:
        return row.tables[group][position // self.block_size] * self.block_size + position % self.block_size

    def _sample(self, plan: Plan, states: list[list[bytes]]) -> StepResult:
        token_ids: list[list[int]] = []
        logprobs: list[list[TokenLogprobs] | None] = []
        prompt_logprobs: dict[int, list[TokenLogprobs]] = {}
        embeddings: dict[int, bytes] = {}
        for work, after in zip(plan.work, states, strict=True):
            row = self.rows[work.row]
            if row.pooling is not None:
                row.states += after
                if work.start + work.count == row.num_prompt_tokens:
                    embeddings[work.row] = pooled(row.states, row.pooling)
            if row.sampling.prompt_logprobs is not None:
                entries = self._score_prompt(row, work, after)
                if entries:
                    prompt_logprobs[work.row] = entries
            if work.num_sampled:
                sampled = after[-work.num_sampled :]
                token_ids.append(self._accept(row, work, sampled))
                num_top = row.sampling.logprobs
                pairs = zip(sampled, token_ids[-1], strict=False)
                logprobs.append(None if num_top is None else [logprobs_of(*pair, num_top) for pair in pairs])
        return StepResult(
            plan.step,
            token_ids,
            logprobs if any(logprobs) else None,
            prompt_logprobs or None,
            embeddings=embeddings or None,
        )

    def _accept(self, row: Row, work: RowWork, states: list[bytes]) -> list[int]:
        """Sample behind each of these states, for as long as the draft behind the one before is what was sampled there."""
        accepted: list[int] = []
        # As the host believes: for which places stop tokens are banned is sent with the step.
        place = work.start + work.count - len(states) + 1
        for state in states:
            allowed = allowed_tokens(row.sampling, place - row.num_prompt_tokens + len(accepted))
            if work.allowed_bitmask is not None:
                mask = int.from_bytes(work.allowed_bitmask, "little")
                allowed = {token_id for token_id in allowed if mask >> token_id & 1}
            draft = row.token_ids.get(row.num_tokens)
            accepted.append(draw(row.sampling.seed, state, allowed))
            row.token_ids[row.num_tokens] = accepted[-1]
            row.num_tokens += 1
            if draft != accepted[-1]:
                break
        return accepted

    def _score_prompt(self, row: Row, work: RowWork, after: list[bytes]) -> list[TokenLogprobs]:
        assert row.sampling.prompt_logprobs is not None
        return [
            logprobs_of(state, row.token_ids[position + 1], row.sampling.prompt_logprobs)
            for position, state in enumerate(after, work.start)
            if position + 1 < row.num_prompt_tokens
        ]
