"""Inputs of sampling besides the logits, and its results.

A line is one line of the step's logits. Parameters that every sequence has are in its row; those that few have (bans, biases,
masks) come with the step, for the lines that have them, so that the others cost nothing. Index tensors that would be empty are
None; an implementation chooses its launches from their lengths and the host integers here, without synchronising.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from streamserve_kernels.rows.tables import RowTables

NO_TOKEN = -1
"""In place of the id of a line that nothing could be sampled from: its logits were not numbers, or every token was banned."""


@dataclass(frozen=True, slots=True)
class LogitEdits:
    """Values to add to single logits; -inf bans a token. Made from `logit_bias`, one-token `bad_words` and `min_tokens`.

    Each use applies a range of the edits to one line; a line may have several, and several lines may share a range.

    lines, firsts, counts  [uses]   int32: the line, and where its range begins and how long it is
    token_ids              [edits]  int32
    values                 [edits]  fp32
    max_count              the longest range
    """

    lines: Tensor
    firsts: Tensor
    counts: Tensor
    token_ids: Tensor
    values: Tensor
    max_count: int


@dataclass(frozen=True, slots=True)
class BadWords:
    """Token sequences of two ids or more: the last is banned where the generated tokens end with those before it.

    lines     [words]          int32
    prefixes  [words, length]  int32, aligned to the right and filled with -1 on the left
    last      [words]          int32
    """

    lines: Tensor
    prefixes: Tensor
    last: Tensor


@dataclass(frozen=True, slots=True)
class TokenMasks:
    """Allowed tokens of some lines, from grammars and `allowed_token_ids`.

    lines  [masks]  int32, distinct
    bits   [masks, ceil(vocab / 32)]  int32; bit t % 32 of word t // 32 is set when token t is allowed
    """

    lines: Tensor
    bits: Tensor


@dataclass(frozen=True, slots=True)
class Penalties:
    """The lines with a presence, frequency or repetition penalty; the penalties themselves are in their rows.

    lines       [lines]  int32
    max_tokens  tokens of the longest of their sequences
    """

    lines: Tensor
    max_tokens: int


@dataclass(frozen=True, slots=True)
class LogprobRequest:
    """The lines that report log-probabilities.

    lines    [lines]  int32
    num_top  alternatives to report besides the sampled token: the most that any of the lines requests
    """

    lines: Tensor
    num_top: int


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """Parameters of `sample` for the lines of one step.

    rows        [lines]  int32, the row of each line; the padding row for lines that only fill a captured size
    positions   [lines]  int32, position of the sampled token in its row, which is the number of tokens before it
    random      [..]  int32, lines with a temperature and no restriction
    restricted  [..]  int32, lines with a temperature and a restriction, such as top_k; all other lines are greedy
    max_top_k   the largest top_k of the restricted lines; 0 when one of them has none
    """

    tables: RowTables
    rows: Tensor
    positions: Tensor
    random: Tensor | None = None
    restricted: Tensor | None = None
    max_top_k: int = 0
    edits: LogitEdits | None = None
    bad_words: BadWords | None = None
    masks: TokenMasks | None = None
    penalties: Penalties | None = None
    logprobs: LogprobRequest | None = None

    @property
    def num_greedy(self) -> int:
        return self.rows.shape[0] - _length(self.random) - _length(self.restricted)


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of one token per line, of the raw logits.

    logprobs      [lines]  fp32
    ranks         [lines]  int32, 1 + how many tokens are more likely
    top_ids       [lines, num_top]  int32, the most likely tokens, best first
    top_logprobs  [lines, num_top]  fp32
    """

    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What `sample` returns.

    token_ids  [lines]  int64, `NO_TOKEN` where none could be sampled
    logprobs   of the lines of the `LogprobRequest`, in its order
    """

    token_ids: Tensor
    logprobs: Logprobs | None = None


def _length(lines: Tensor | None) -> int:
    return 0 if lines is None else lines.shape[0]
