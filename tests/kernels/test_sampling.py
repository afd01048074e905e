"""Choosing tokens, against the formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamserve_kernels import NO_TOKEN, LogprobRequest, SamplingTensors, sample, token_logprobs
from streamserve_kernels.reference.noise import exponential_noise, line_keys, noise_bits
from streamserve_kernels.reference.sampling import argmax, largest
from tests.support.sampling import gumbel, int32, kept_tokens, log_softmax, make_tables
from tests.support.sampling import noise_bits as noise_bits_by_definition

VOCAB = 1024


def random_logits(lines: int, *, seed: int = 0, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(lines, VOCAB, generator=generator) * scale).to(dtype)


def random_floats(lines: int, width: int) -> torch.Tensor:
    return torch.randn(lines, width, generator=torch.Generator().manual_seed(width))


def all_lines(count: int) -> torch.Tensor:
    return torch.arange(count, dtype=torch.int32)


def test_the_noise_bits_are_those_of_the_definition() -> None:
    seeds, positions = [0, 1, 2**63 - 1, 0xDEADBEEF12345678 >> 1], [0, 7, 4095, 131071]
    low = int32(*(np.array(seeds, dtype="<u8").view("<i4")[0::2].tolist()))
    high = int32(*(np.array(seeds, dtype="<u8").view("<i4")[1::2].tolist()))
    tokens = [0, 1, 2, 49151, 151935, 2**24 + 1]
    bits = noise_bits(line_keys(low, high, int32(*positions)), int32(*tokens).unsqueeze(0))
    for line, (seed, position) in enumerate(zip(seeds, positions, strict=True)):
        assert bits[line].tolist() == [noise_bits_by_definition(seed, position, token) for token in tokens]


def test_the_noise_is_a_standard_exponential_over_tokens_positions_and_seeds() -> None:
    count = 20_000
    along = all_lines(count)
    nothing = torch.zeros_like(along)
    zero = int32(0)
    samples = {
        "tokens": exponential_noise(line_keys(zero, zero, zero), along.unsqueeze(0)).flatten(),
        "positions": exponential_noise(line_keys(nothing, nothing, along), zero.unsqueeze(0)).flatten(),
        "low seeds": exponential_noise(line_keys(along, nothing, nothing), zero.unsqueeze(0)).flatten(),
        "high seeds": exponential_noise(line_keys(nothing, along, nothing), zero.unsqueeze(0)).flatten(),
    }
    for name, noise in samples.items():
        uniform = torch.exp(-noise.double()).sort().values
        distance = (uniform - torch.arange(1, count + 1) / count).abs().max()
        assert distance < 1.63 / count**0.5, f"{name}: Kolmogorov-Smirnov at 1 %"
        neighbours = torch.corrcoef(torch.stack([noise[1:], noise[:-1]]))[0, 1]
        assert abs(neighbours) < 4 / count**0.5, f"{name}: neighbours correlate"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_greedy_takes_the_first_of_the_largest_logits(dtype: torch.dtype) -> None:
    logits = random_logits(5, dtype=dtype)
    logits[1, 700] = logits[1, 300] = 50.0
    tables = make_tables(5)
    got = sample(logits, SamplingTensors(tables, all_lines(5), all_lines(5)))
    assert got.token_ids.tolist() == [int(line.float().numpy().argmax()) for line in logits]
    assert got.token_ids[1] == 300


@pytest.mark.parametrize("fault", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.0, 0, 1.0), (1.0, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.9)], ids=str
)
def test_a_line_that_nothing_can_be_sampled_from_gets_no_token(
    fault: float, temperature: float, top_k: int, top_p: float
) -> None:
    logits = random_logits(3)
    logits[1] = fault
    tables = make_tables(3, temperature=[temperature] * 3, top_k=[top_k] * 3, top_p=[top_p] * 3)
    kind = {} if not temperature else {"restricted" if top_k or top_p < 1.0 else "random": all_lines(3)}
    p = SamplingTensors(tables, all_lines(3), int32(5, 5, 5), logprobs=LogprobRequest(all_lines(3), 2), **kind)
    token_ids = sample(logits, p).token_ids.tolist()
    assert token_ids[1] == NO_TOKEN
    assert min(token_ids[0], token_ids[2]) >= 0


@pytest.mark.parametrize("width", [1, 7, 48, 1000, 1024, 32064])
def test_argmax_at_widths_that_divide_into_groups_and_that_do_not(width: int) -> None:
    values = torch.randint(0, 50, (9, width), generator=torch.Generator().manual_seed(width)).float()
    assert argmax(values).tolist() == values.numpy().argmax(1).tolist()


@pytest.mark.parametrize("width", [7, 48, 1000, 4096])
@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_largest_is_the_head_of_a_sort(width: int, count: int) -> None:
    values = random_floats(6, width)
    values[0, : width // 2] = 9.0
    count = min(count, width)
    found, places = largest(values, count)
    assert torch.equal(found, values.sort(1, descending=True).values[:, :count])
    assert torch.equal(values.gather(1, places), found)
    assert all(len(set(line)) == count for line in places.tolist())


def test_a_temperature_takes_the_largest_of_scaled_logits_plus_noise() -> None:
    seeds, positions, temperatures = [3, 2**40 + 9, 11, 0], [5, 6, 900, 0], [1.0, 0.3, 1.7, 0.8]
    logits = random_logits(4, seed=1)
    tables = make_tables(4, seed=seeds, temperature=temperatures)
    got = sample(logits, SamplingTensors(tables, all_lines(4), int32(*positions), random=all_lines(4)))
    for line in range(4):
        scores = logits[line].double().numpy() / temperatures[line] + gumbel(seeds[line], positions[line], VOCAB)
        assert got.token_ids[line] == scores.argmax()


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (1, 1.0, 0.0),
        (5, 1.0, 0.0),
        (0, 0.9, 0.0),
        (0, 0.05, 0.0),
        (50, 0.7, 0.0),
        (0, 1.0, 0.1),
        (20, 0.8, 0.02),
        (1000, 0.99, 0.0),
    ],
)
def test_restrictions_keep_what_the_formulas_keep(scale: float, top_k: int, top_p: float, min_p: float) -> None:
    lines, temperature = 8, 0.9
    logits = random_logits(lines, seed=2, scale=scale)
    seeds, positions = list(range(100, 100 + lines)), list(range(lines))
    tables = make_tables(
        lines,
        seed=seeds,
        temperature=[temperature] * lines,
        top_k=[top_k] * lines,
        top_p=[top_p] * lines,
        min_p=[min_p] * lines,
    )
    got = sample(
        logits, SamplingTensors(tables, all_lines(lines), int32(*positions), restricted=all_lines(lines), max_top_k=top_k)
    )
    for line in range(lines):
        values = logits[line].double().numpy()
        scores = values / temperature + gumbel(seeds[line], positions[line], VOCAB)
        scores[~kept_tokens(values, temperature, top_k=top_k, top_p=top_p, min_p=min_p)] = -np.inf
        assert got.token_ids[line] == scores.argmax()


def test_ties_with_the_last_token_kept_stay() -> None:
    """With 600 equal logits and top_k 2, every one of them can be drawn."""
    count = 400
    logits = torch.full((count, VOCAB), -20.0)
    logits[:, :600] = 1.0
    tables = make_tables(count, seed=list(range(count)), temperature=[1.0] * count, top_k=[2] * count)
    got = sample(logits, SamplingTensors(tables, all_lines(count), all_lines(count), restricted=all_lines(count), max_top_k=2))
    assert got.token_ids.max() < 600
    assert len(set(got.token_ids.tolist())) > 200


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (6, 1.0), (0, 0.8)])
def test_draws_follow_the_softmax(top_k: int, top_p: float) -> None:
    """Chi-square at 0.1 % over 6 000 positions of one seed."""
    draws, temperature = 6_000, 0.7
    values = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -30.0] * 2)
    tables = make_tables(1, seed=[42], temperature=[temperature], top_k=[top_k], top_p=[top_p])
    lines = all_lines(draws)
    kind = {"restricted": lines} if top_k or top_p < 1.0 else {"random": lines}
    parameters = SamplingTensors(tables, torch.zeros_like(lines), lines, max_top_k=top_k, **kind)
    got = sample(torch.tensor(values, dtype=torch.float32).expand(draws, -1), parameters).token_ids
    expected = np.exp(values / temperature) * kept_tokens(values, temperature, top_k=top_k, top_p=top_p)
    expected *= draws / expected.sum()
    counts = np.bincount(got.numpy(), minlength=len(values))
    likely = expected > 5
    assert counts[~likely].sum() <= 5
    chi_square = float((((counts - expected) ** 2)[likely] / expected[likely]).sum())
    freedom = int(likely.sum()) - 1
    assert chi_square < freedom + 3.1 * (2 * freedom) ** 0.5 + 6


def test_a_line_does_not_depend_on_its_batch_mates() -> None:
    """Every line alone chooses what it chose in a crowd of all kinds, whose widest member needs a full sort."""
    lines = 12
    logits = random_logits(lines, seed=5, scale=2.0)
    logits[11] = 0.0
    tables = make_tables(
        lines,
        seed=[900 + line for line in range(lines)],
        temperature=[0.0, 0.0, 1.0, 0.7, 1.3, 1.0, 0.9, 0.9, 1.0, 1.0, 0.8, 1.0],
        top_k=[0, 0, 0, 0, 0, 3, 40, 0, 0, 7, 0, 0],
        top_p=[1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.95, 0.5, 0.6, 1.0, 0.999],
        min_p=[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.05, 0.0],
    )
    positions = all_lines(lines) * 3 + 1
    crowd = sample(
        logits, SamplingTensors(tables, all_lines(lines), positions, random=int32(2, 3, 4), restricted=int32(*range(5, 12)))
    )
    for line in range(lines):
        kind = "random" if 2 <= line < 5 else "restricted" if line >= 5 else None
        parameters = SamplingTensors(
            tables,
            int32(line),
            positions[line : line + 1],
            max_top_k=int(tables.top_k[line]) if kind == "restricted" else 0,
            **({kind: int32(0)} if kind else {}),
        )
        assert sample(logits[line : line + 1], parameters).token_ids.item() == crowd.token_ids[line], f"line {line}"


def test_the_next_position_gets_fresh_noise_and_the_same_position_the_same() -> None:
    logits = torch.zeros(64, VOCAB)
    tables = make_tables(1, seed=[1], temperature=[1.0])
    rows = torch.zeros(64, dtype=torch.int32)
    here = sample(logits, SamplingTensors(tables, rows, all_lines(64), random=all_lines(64))).token_ids
    again = sample(logits, SamplingTensors(tables, rows, all_lines(64), random=all_lines(64))).token_ids
    assert here.tolist() == again.tolist()
    assert len(set(here.tolist())) > 50


def test_logprobs_are_of_the_raw_logits_at_the_lines_that_ask() -> None:
    logits = random_logits(4, seed=6)
    untouched = logits.clone()
    tables = make_tables(4, seed=[1, 2, 3, 4], temperature=[0.0, 0.5, 0.5, 0.0])
    got = sample(
        logits, SamplingTensors(tables, all_lines(4), all_lines(4), random=int32(1, 2), logprobs=LogprobRequest(int32(0, 2), 5))
    )
    assert got.logprobs is not None
    assert torch.equal(logits, untouched)
    for place, line in enumerate((0, 2)):
        expected = log_softmax(logits[line].double().numpy())
        token = int(got.token_ids[line])
        assert got.logprobs.logprobs[place].item() == pytest.approx(expected[token], abs=1e-4)
        assert got.logprobs.ranks[place] == 1 + (expected > expected[token]).sum()
        best = np.argsort(-expected)[:5]
        assert got.logprobs.top_ids[place].tolist() == best.tolist()
        assert got.logprobs.top_logprobs[place].tolist() == pytest.approx(expected[best].tolist(), abs=1e-4)


def test_logprobs_without_alternatives() -> None:
    logits = random_logits(2)
    got = token_logprobs(logits, torch.tensor([3, 5]), 0)
    assert got.top_ids.shape == (2, 0)
    assert got.logprobs[1].item() == pytest.approx(log_softmax(logits[1].double().numpy())[5], abs=1e-4)
