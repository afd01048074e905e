"""Every kernel at real sizes against its reference in fp32, on fresh random inputs, with poisoned caches."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor

import streamserve_kernels as kernels
from benchmarks.gpu.report import SuiteReport
from streamserve_kernels.reference import activations, attention, experts, norms, sampling
from streamserve_kernels.reference.attention.kv_format import EIGHT_BIT_DTYPES, quantize
from streamserve_kernels.reference.projections import dense
from streamserve_kernels.rows.tables import make_row_tables
from tests.support.kernel_cases import LIMITS, paged_batch, random, relative_error

Case = Callable[[SuiteReport], None]
EPS = 1e-6
LINEAR_SHAPES = [(1024, 4096), (2048, 1024), (3072, 1024), (4096, 512), (12288, 512)]
ATTENTION_SHAPES = [(64, 9, 3, 16), (80, 8, 8, 32), (96, 4, 1, 64), (128, 16, 8, 16), (128, 32, 8, 64), (256, 8, 4, 16)]
TURNS: list[tuple[float, dict[str, Any]]] = [
    (1.0, {"interleaved": True}),
    (0.5, {"interleaved": True}),
    (1.0, {"norm_rotated": True}),
    (1.0, {"query_scaling": kernels.QueryScaling(0.1, 256)}),
    (0.5, {"interleaved": True, "norm_rotated": True, "query_scaling": kernels.QueryScaling(0.1, 256)}),
]
BATCHES = {
    "few rows": ([700, 30, 1, 4000, 290, 900], [1, 1, 1, 1, 77, 900]),
    "20 rows": ([1, 2000, *range(50, 950, 50)], [1] * 20),
    "90 rows": ([3000, 1, *range(17, 1425, 16)], [1] * 90),
}


EIGHT_BIT_CASES: list[tuple[tuple[int, int, int, int], str, dict[str, Any]]] = [
    *(((128, 32, 8, 16), name, {}) for name in BATCHES),
    ((80, 8, 8, 32), "few rows", {"window": 100, "softcap": 30.0}),
    ((256, 8, 4, 16), "few rows", {}),
    ((64, 64, 8, 16), "90 rows", {"sinks": True}),
]


def check_kernels(report: SuiteReport, *, thorough: bool) -> None:
    """thorough  fp16 and fp32 too, which compile their own kernels."""
    cases = _cases([torch.bfloat16, torch.float16, torch.float32] if thorough else [torch.bfloat16])
    # Compiling takes nearly all the time, and goes on several threads: once unheard, for nothing else.
    unheard = SuiteReport(None, silent=True)
    kernels.preload()
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda case: case(unheard), cases))
    torch.cuda.synchronize()
    for case in cases:
        case(report)


def _cases(dtypes: list[torch.dtype]) -> list[Case]:
    cases: list[Case] = [
        *(partial(_check_attention, shape=(128, 16, 8, 16), dtype=torch.bfloat16, batch_name=name) for name in BATCHES),
        partial(_check_attention, shape=(128, 16, 8, 16), dtype=torch.bfloat16, window=100),
        partial(_check_attention, shape=(128, 16, 8, 16), dtype=torch.bfloat16, batch_name="90 rows", window=600),
        partial(_check_attention, shape=(128, 16, 8, 32), dtype=torch.bfloat16, window=1024, softcap=30.0),
        *(
            partial(_check_attention, shape=(128, 16, 8, 16), dtype=torch.bfloat16, rotates=share, turn=turn)
            for share, turn in TURNS
        ),
        partial(_check_attention, shape=(64, 64, 8, 16), dtype=torch.bfloat16, window=128, sinks=True),
        *(
            partial(_check_eight_bits, shape=shape, batch_name=name, kept_as=kept_as, **variant)
            for kept_as in EIGHT_BIT_DTYPES
            for shape, name, variant in EIGHT_BIT_CASES
        ),
        partial(_check_attention, shape=(64, 64, 8, 16), dtype=torch.bfloat16, batch_name="90 rows", sinks=True),
        _check_sampling,
    ]
    for dtype in dtypes:
        cases += [
            partial(_check_experts, rows=rows, biased=biased, dtype=dtype)
            for rows in (1, 2, 8, 33, 64, 200, 1000, 5000)
            for biased in (False, True)
        ]
        cases += [partial(_check_attention, shape=shape, dtype=dtype) for shape in ATTENTION_SHAPES]
        cases += [
            partial(_check_linears, rows=rows, inner=inner, outer=outer, dtype=dtype)
            for inner, outer in LINEAR_SHAPES
            for rows in (1, 8, 16, 64)
        ]
        cases += [partial(_check_norms, width=width, dtype=dtype) for width in (80, 1024, 5120)]
    return cases


def _check_linears(report: SuiteReport, *, rows: int, inner: int, outer: int, dtype: torch.dtype) -> None:
    x, weight, norm = random(rows, inner, dtype=dtype), random(outer, inner, dtype=dtype) / inner**0.5, random(inner)
    bias, residual = random(outer, dtype=dtype), random(rows, outer, dtype=dtype)
    wide, wide_weight = x.float(), weight.float()
    plain = dense.linear(wide, wide_weight, bias.float())
    pairs = {
        "linear": (kernels.linear(x, weight, bias), plain),
        "norm_linear": (kernels.norm_linear(x, norm, EPS, weight), dense.norm_linear(wide, norm, EPS, wide_weight)),
        "norm_gated_linear": (
            kernels.norm_gated_linear(x, norm, EPS, weight, "silu"),
            dense.norm_gated_linear(wide, norm, EPS, wide_weight, "silu"),
        ),
        "linear_residual": (kernels.linear_residual(x, weight, residual.clone(), bias), plain + residual.float()),
    }
    for name, (actual, expected) in pairs.items():
        _check(report, actual, expected, dtype, kernel=name, rows=rows, inner=inner, outer=outer)


def _check_experts(report: SuiteReport, *, rows: int, biased: bool, dtype: torch.dtype) -> None:
    """Of 24 experts, some of which are chosen far more often, 4 for each token."""
    num_experts, hidden, inner = 24, 1024, 384
    x, norm, router = random(rows, hidden, dtype=dtype), random(hidden), random(num_experts, hidden, dtype=dtype) / hidden**0.5
    gate_up = random(num_experts, 2 * inner, hidden, dtype=dtype) / hidden**0.5
    down, residual = random(num_experts, hidden, inner, dtype=dtype) / inner**0.5, random(rows, hidden, dtype=dtype)
    biases = {
        "gate_up_bias": random(num_experts, 2 * inner, dtype=dtype),
        "down_bias": random(num_experts, hidden, dtype=dtype),
    }
    activation: kernels.Activation = "clamped_silu" if biased else "silu"
    bias = torch.linspace(-2, 2, num_experts, device="cuda", dtype=dtype)
    routes = kernels.norm_route(x, norm, EPS, router, kernels.RoutingRule(4), bias=bias)
    expected = experts.norm_route(x.float(), norm, EPS, router.float(), kernels.RoutingRule(4), bias=bias.float())
    row = {"rows": rows, "biased": biased}
    # Of near ties rounding decides.
    same = (routes.expert_ids.sort(dim=1).values == expected.expert_ids.sort(dim=1).values).all(dim=1)
    report.check("check", 1.0 - float(same.float().mean()), 0.1, kernel="norm_route", **row, dtype=str(dtype)[6:])
    wide = kernels.Routes(routes.normed.float(), routes.expert_ids, routes.weights)
    chosen = biases if biased else {}
    summed = experts.experts_residual(
        residual.float(),
        wide,
        gate_up.float(),
        down.float(),
        activation,
        **{name: each.float() for name, each in chosen.items()},
    )
    actual = kernels.experts_residual(residual.clone(), routes, gate_up, down, activation, **chosen)
    _check(report, actual, summed, dtype, kernel="experts_residual", **row)


def _check_norms(report: SuiteReport, *, width: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(37, width, dtype=dtype), random(width), random(width)
    residual = random(37, width, dtype=dtype)
    wide = x.float()
    pairs = {
        "rms_norm": (kernels.rms_norm(x, weight, EPS), norms.rms_norm(wide, weight, EPS)),
        "rms_norm_residual": (
            kernels.rms_norm_residual(x, weight, EPS, residual),
            norms.rms_norm(wide, weight, EPS) + residual.float(),
        ),
        "layer_norm": (kernels.layer_norm(x, weight, bias, EPS), norms.layer_norm(wide, weight, bias, EPS)),
        "gated silu": (kernels.gated_activation(x, "silu"), activations.gated_activation(wide, "silu")),
        "gated gelu_tanh": (kernels.gated_activation(x, "gelu_tanh"), activations.gated_activation(wide, "gelu_tanh")),
    }
    for name, (actual, expected) in pairs.items():
        _check(report, actual, expected, dtype, kernel=name, width=width)
    qkv, weights = random(37, 2 * width, dtype=dtype), (random(width), random(width // 2))
    expected = qkv.float()
    norms.norm_all_heads_(expected, *weights, EPS)
    kernels.norm_all_heads_(qkv, *weights, EPS)
    _check(report, qkv, expected, dtype, kernel="norm_all_heads_", width=width)


def _check_attention(
    report: SuiteReport,
    *,
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    batch_name: str = "few rows",
    rotates: float = 1.0,
    turn: dict[str, Any] | None = None,
    **variant: Any,
) -> None:
    """rotates  share of a head; turn  how heads are normed, paired and scaled: fields of `Heads`"""
    head_dim, q_heads, kv_heads, block_size = shape
    batch = paged_batch(*BATCHES[batch_name], kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=dtype)
    norms = random(head_dim, dtype=dtype), random(head_dim, dtype=dtype)
    heads = kernels.Heads(q_heads, kv_heads, head_dim, *norms, **(turn or {}))
    scoring = kernels.Scoring(head_dim**-0.5, **variant | ({"sinks": random(q_heads) * 2} if "sinks" in variant else {}))
    qkv = random(batch.num_tokens, heads.width, dtype=dtype)
    tokens = batch.tokens(random(batch.max_seq_len, int(head_dim * rotates)))
    expected_cache = batch.cache.clone()
    q = attention.rotary_write(qkv.clone(), tokens, expected_cache, heads)
    finite = expected_cache.float().nan_to_num()
    expected = attention.paged_attention(q.float(), finite, batch.reference_sequences, scoring)
    torch.cuda.synchronize()
    actual = kernels.rotary_attention(qkv, tokens, batch.cache, batch.sequences, heads, scoring)
    row = {"batch": batch_name, "head_dim": head_dim, "heads": f"{q_heads}/{kv_heads}", "block_size": block_size, **variant}
    row |= {"rotates": rotates, **{name: str(value) for name, value in (turn or {}).items()}}
    _check(report, actual, expected, dtype, kernel="rotary_attention", **row)
    _check(report, batch.finite_cache, finite, dtype, kernel="kv cache", **row)
    torch.cuda.synchronize()
    again = kernels.paged_attention(q.to(dtype), batch.cache, batch.sequences, scoring)
    _check(report, again, expected, dtype, kernel="paged_attention", **row)


def _check_eight_bits(
    report: SuiteReport, *, shape: tuple[int, int, int, int], batch_name: str, kept_as: torch.dtype, **variant: Any
) -> None:
    """bf16 over a cache of 8-bit floats, which may differ from the reference's where norms are rounded to the other side."""
    head_dim, q_heads, kv_heads, block_size = shape
    scales = kernels.KvScales(0.03, 0.5)
    batch = paged_batch(*BATCHES[batch_name], kv_heads=kv_heads, head_dim=head_dim, block_size=block_size, dtype=torch.float32)
    parts = [quantize(part, scale, kept_as) for part, scale in zip(batch.cache.unbind(1), scales, strict=True)]
    cache = torch.stack([part.view(torch.uint8) for part in parts], dim=1).view(kept_as)
    norm, tokens = random(head_dim, dtype=torch.bfloat16), batch.tokens(random(batch.max_seq_len, head_dim))
    heads = kernels.Heads(q_heads, kv_heads, head_dim, norm, norm)
    scoring = kernels.Scoring(head_dim**-0.5, **variant | ({"sinks": random(q_heads) * 2} if "sinks" in variant else {}))
    qkv = random(batch.num_tokens, heads.width, dtype=torch.bfloat16)
    expected_cache = cache.clone()
    q = attention.rotary_write(qkv.clone(), tokens, expected_cache, heads, kv_scales=scales)
    clean = expected_cache.float().nan_to_num().to(kept_as)
    expected = attention.paged_attention(q.float(), clean, batch.reference_sequences, scoring, kv_scales=scales)
    torch.cuda.synchronize()
    actual = kernels.rotary_attention(qkv, tokens, cache, batch.sequences, heads, scoring, kv_scales=scales)
    row = {"batch": batch_name, "head_dim": head_dim, "heads": f"{q_heads}/{kv_heads}", "kv": str(kept_as)[6:], **variant}
    _check(report, actual, expected, torch.bfloat16, kernel="rotary_attention", **row)
    _check(report, cache.float().nan_to_num(), clean.float(), torch.bfloat16, kernel="kv cache", **row)


def _check_sampling(report: SuiteReport) -> None:
    lines, vocab = 64, 151936
    device = torch.device("cuda")
    tables = make_row_tables(lines, 100, 8, device)
    every = torch.arange(lines, dtype=torch.int32, device=device)
    tables.seed_low.copy_(torch.arange(lines + 1) * 77)
    logits = (random(lines, vocab) * 2).bfloat16()
    tables.temperature.fill_(0.8)
    for name, top_p, top_k in (("random", 1.0, 0), ("restricted", 0.9, 50)):
        tables.top_p.fill_(top_p)
        tables.top_k.fill_(top_k)
        chosen = {"random": every} if name == "random" else {"restricted": every, "max_top_k": top_k}
        parameters = kernels.SamplingTensors(tables, every, every + 5, **chosen)
        same = kernels.sample(logits, parameters).token_ids == sampling.sample(logits, parameters).token_ids
        report.check("check", 1.0 - float(same.float().mean()), 0.02, kernel=f"sample {name}", lines=lines, vocab=vocab)


def _check(report: SuiteReport, actual: Tensor, expected: Tensor, dtype: torch.dtype, **row: Any) -> None:
    report.check("check", relative_error(actual, expected), LIMITS[dtype], **row, dtype=str(dtype)[6:])
