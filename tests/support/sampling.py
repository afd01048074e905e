"""Sampling by its formulas, in numpy and Python integers: written apart from the kernels, to compare them with."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from streamserve_kernels import RowTables, make_row_tables

Line = npt.NDArray[np.float64]

WORD = 0xFFFFFFFF


def make_tables(num_rows: int, *, max_model_len: int = 64, **columns: list[float]) -> RowTables:
    """Rows with neutral parameters, but for `columns`: name of a parameter -> its value per row; `seed` is split."""
    tables = make_row_tables(num_rows, max_model_len, 4, torch.device("cpu"))
    tables.top_p.fill_(1.0)
    tables.repetition_penalty.fill_(1.0)
    for name, values in columns.items():
        if name == "seed":
            for row, seed in enumerate(values):
                tables.seed_low[row], tables.seed_high[row] = signed(int(seed) & WORD), signed(int(seed) >> 32)
        else:
            getattr(tables, name)[:num_rows] = torch.tensor(values, dtype=getattr(tables, name).dtype)
    return tables


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word


def noise_bits(seed: int, position: int, token_id: int) -> int:
    """The 23 bits of one token's noise, as its definition says."""
    a = _mix((seed & WORD) ^ _mix((position + 0x9E3779B9) & WORD))
    b = _mix((seed >> 32) ^ a ^ 0x85EBCA77)
    h = (token_id * 0x9E3779B1 & WORD) ^ a
    h ^= h >> 16
    h = h * 0x7FEB352D & WORD
    h ^= b
    h ^= h >> 15
    return (h * 0x846CA68B & WORD) >> 9


def gumbel(seed: int, position: int, vocab_size: int) -> Line:
    bits = np.array([noise_bits(seed, position, token_id) for token_id in range(vocab_size)], dtype=np.float64)
    return -np.log(-np.log((2 * bits + 1) / 2**24))


RESTRICTIONS = ("top_k", "top_p", "min_p")


def kept_tokens(
    logits: Line, temperature: float, *, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> npt.NDArray[np.bool_]:
    """Which tokens a line may take: min_p, then top_k, then top_p over what is left; ties with the last one kept stay."""
    scaled = logits / temperature
    probabilities = np.exp(scaled - scaled.max())
    kept = probabilities >= min_p
    if top_k:
        kept &= scaled >= np.sort(scaled)[::-1][min(top_k, len(scaled)) - 1]
    left = np.where(kept, probabilities, 0.0)
    descending = np.sort(left)[::-1]
    reached = np.cumsum(descending) >= top_p * left.sum()
    if top_p < 1.0:
        kept &= left >= descending[int(np.argmax(reached))]
    return kept


def penalised(logits: Line, prompt: list[int], output: list[int], repetition: float, frequency: float, presence: float) -> Line:
    changed = logits.copy()
    for token_id in set(prompt) | set(output):
        value = changed[token_id]
        changed[token_id] = value / repetition if value > 0 else value * repetition
    for token_id in set(output):
        changed[token_id] -= frequency * output.count(token_id) + presence
    return changed


def log_softmax(logits: Line) -> Line:
    shifted = logits - logits.max()
    return shifted - math.log(np.exp(shifted).sum())


def _mix(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B & WORD
    h ^= h >> 13
    h = h * 0xC2B2AE35 & WORD
    return h ^ h >> 16
