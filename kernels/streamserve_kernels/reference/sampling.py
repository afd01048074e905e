"""Sampling of the next token of every line, in torch.

The choice of a line depends on its own logits, row and position, not on the other lines nor on their number.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from streamserve_kernels.reference.logit_edits import edit_logits
from streamserve_kernels.reference.noise import exponential_noise, line_keys
from streamserve_kernels.sampling.tensors import NO_TOKEN, Logprobs, SampledTokens, SamplingTensors

_FIRST_CANDIDATES = 64
_TIE_MARGIN = 8


def sample(logits: Tensor, parameters: SamplingTensors) -> SampledTokens:
    """Sample one token per line.

    logits   [lines, vocab]  bf16|fp16|fp32; left unchanged
    returns  the ids, and log-probabilities of the *raw* logits for the lines that request them

    Edits (`edit_logits`), then per line: greedy takes the first of the largest logits. With a temperature, logits are divided
    by it; min_p drops tokens less likely than min_p times the likeliest (Nguyen et al., 2024), top_k those below the k-th
    largest logit (ties stay), top_p those outside the smallest set of what remains whose probability reaches p (Holtzman et
    al., 2019; ties stay); then the largest of logit + Gumbel noise is taken.

    A line with NaN or +inf among its edited logits, or with nothing but -inf, gets `NO_TOKEN`.
    """
    token_ids = _choose(edit_logits(logits, parameters), parameters)
    if parameters.logprobs is None:
        return SampledTokens(token_ids)
    lines = parameters.logprobs.lines
    return SampledTokens(token_ids, token_logprobs(logits[lines], token_ids[lines], parameters.logprobs.num_top))


def token_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """Log-probabilities of one token per line, and the `num_top` likeliest: logits [lines, vocab], token_ids [lines] int64.

    Those of `NO_TOKEN` are of token 0.
    """
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, token_ids.clamp(min=0).unsqueeze(1))
    ranks = (logprobs > chosen).sum(1, dtype=torch.int32) + 1
    top_logprobs, top_ids = largest(logprobs, min(num_top, logits.shape[1]))
    return Logprobs(chosen.squeeze(1), ranks, top_ids.int(), top_logprobs)


def _choose(logits: Tensor, p: SamplingTensors) -> Tensor:
    if p.num_greedy == len(logits):
        return _best(logits)
    if p.random is not None and len(p.random) == len(logits):
        return _choose_random(logits, p, p.random)
    token_ids = _best(logits) if p.num_greedy else torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if p.random is not None:
        token_ids[p.random] = _choose_random(logits[p.random], p, p.random)
    if p.restricted is not None:
        token_ids[p.restricted] = _choose_restricted(logits[p.restricted], p, p.restricted)
    return token_ids


def _choose_random(logits: Tensor, p: SamplingTensors, lines: Tensor) -> Tensor:
    """Sample line by line: a line fits a core's cache, and a dozen passes over it then cost a third."""
    every_token = torch.arange(logits.shape[1], dtype=torch.int32, device=logits.device).unsqueeze(0)
    first_keys, second_keys = _keys(p, lines)
    temperatures = p.tables.temperature[p.rows[lines]]
    chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for line in range(len(logits)):
        here = slice(line, line + 1)
        scores = torch.div(logits[here], temperatures[here]).softmax(-1)
        scores /= exponential_noise((first_keys[here], second_keys[here]), every_token)
        chosen[here] = _best(scores)
    return chosen


def _choose_restricted(logits: Tensor, p: SamplingTensors, lines: Tensor) -> Tensor:
    logprobs = torch.div(logits, p.tables.temperature[p.rows[lines]].unsqueeze(1)).log_softmax(-1)
    return _choose_among(logprobs, p, lines, p.max_top_k + _TIE_MARGIN if p.max_top_k else _FIRST_CANDIDATES)


def _choose_among(logprobs: Tensor, p: SamplingTensors, lines: Tensor, width: int) -> Tensor:
    """Apply noise only to the `width` likeliest tokens; lines that may keep more repeat with a larger width."""
    rows, width = p.rows[lines], min(width, logprobs.shape[1])
    values, token_ids = largest(logprobs, width)
    threshold, complete = _threshold(values, p.tables.top_k[rows], p.tables.top_p[rows], p.tables.min_p[rows])
    scores = values.exp() / exponential_noise(_keys(p, lines), token_ids.int())
    scores.masked_fill_(values < threshold.unsqueeze(1), -1.0)
    index = scores.argmax(1, keepdim=True)
    chosen = token_ids.gather(1, index).masked_fill_(~scores.gather(1, index).isfinite(), NO_TOKEN).squeeze(1)
    if width < logprobs.shape[1] and not bool(complete.all()):
        rest = (~complete).nonzero().squeeze(1)
        chosen[rest] = _choose_among(logprobs[rest], p, lines[rest], 8 * width)
    return chosen


def _threshold(values: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability below which a line keeps no token, and whether `values` are known to include all that it keeps.

    values                [lines, width]  fp32, the largest log-probabilities, descending
    top_k, top_p, min_p   [lines]
    """
    last = values[:, -1]
    index = (top_k.long() - 1).clamp(0, values.shape[1] - 1).unsqueeze(1)
    kth = values.gather(1, index).squeeze(1).masked_fill(top_k == 0, -math.inf)
    floor = torch.maximum(values[:, 0] + min_p.log(), kth)
    # fp64 and in order: the sum of a line must not depend on how wide its batch mates made `values`.
    cumulative = values.double().exp().masked_fill(values < floor.unsqueeze(1), 0.0).cumsum(1)
    total = torch.where(floor == -math.inf, 1.0, cumulative[:, -1])
    target = top_p * total
    before = cumulative.roll(1, 1)
    before[:, 0] = 0.0
    nucleus = (before < target.unsqueeze(1)).sum(1, keepdim=True).clamp(min=1) - 1
    threshold = torch.maximum(floor, values.gather(1, nucleus).squeeze(1).masked_fill(top_p >= 1.0, -math.inf))
    floor_inside = (floor == -math.inf) | (last < floor)
    return threshold, floor_inside & (last < threshold) & (top_k <= values.shape[1])


def _keys(p: SamplingTensors, lines: Tensor) -> tuple[Tensor, Tensor]:
    rows = p.rows[lines]
    return line_keys(p.tables.seed_low[rows], p.tables.seed_high[rows], p.positions[lines])


def _best(scores: Tensor) -> Tensor:
    """The token with the best score of each line; NaN counts as the best, and then, or where none is finite, `NO_TOKEN`."""
    token_ids = argmax(scores)
    return token_ids.masked_fill_(~scores.gather(1, token_ids.unsqueeze(1)).squeeze(1).isfinite(), NO_TOKEN)


def argmax(values: Tensor) -> Tensor:
    """The first of the largest values of each line, [lines, width] -> [lines] int64.

    In two stages, since torch's maximum is vectorised on a CPU and its argmax is not.
    """
    width = math.gcd(values.shape[1], 256)
    if width < 16:
        return torch.argmax(values, 1)
    groups = values.view(len(values), -1, width)
    group = groups.amax(2).argmax(1, keepdim=True)
    inside = groups.gather(1, group.unsqueeze(2).expand(-1, -1, width)).squeeze(1).argmax(1)
    return group.squeeze(1) * width + inside


def largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each line, descending, and their indices (any among equals): [lines, width] -> 2 x [lines, count].

    They lie in the `count` groups with the largest maxima, and torch's slow selection runs on those only. Members of a group
    are far apart, so that a CPU computes the maxima of many neighbouring groups at a time.
    """
    size = math.gcd(values.shape[1], 16)
    num_groups = values.shape[1] // size
    if count >= num_groups // 2:
        return values.topk(count)
    best = values.view(len(values), size, num_groups).amax(1).topk(count, sorted=False).indices
    members = torch.arange(0, values.shape[1], num_groups, device=values.device).unsqueeze(1)
    indices = (best.unsqueeze(1) + members).flatten(1)
    found, index = values.gather(1, indices).topk(count)
    return found, indices.gather(1, index)
