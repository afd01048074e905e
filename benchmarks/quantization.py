"""What quantized weights change in the demo model's next tokens, on a CPU in fp32: `python -m benchmarks.quantization`.

For each scheme: against the same model with the numbers that its weights stand for, which is what rounding activations costs;
and that against the weights as they were, which is what rounding weights costs. Then, against these, the same weights with a KV
cache of 8 bits. The share of equal first choices, and the KL divergence, mean and largest, over tokens that are given, so that
no difference adds up: what the model itself says after four prompts, always its first choice, and the readme, of which it is
less sure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from streamserve.checkpoint.names import resolve
from streamserve.models.architectures.base import CausalModel
from streamserve.models.layers.linear import VocabularyLinear
from streamserve.models.registry import read_arch
from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.form import Form
from streamserve.models.weights.loader import load_model
from streamserve.text.tokenizers.tokenizer import load_tokenizer
from streamserve_kernels import Fp8Weight, dequantize_fp8, fp8_scale_columns, quantize_fp8_rows
from tests.models.paged import PagedRun

LARGEST = 448.0
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a little girl who",
    "1, 2, 3, 4, 5, 6, 7,",
)
Round = Callable[[Tensor], Tensor]


class Simulated(Form):
    """Multiplies numbers in fp32, with inputs that are rounded as a GPU's kernels round them."""

    def __init__(self, form: Form, weight: Tensor, rounded: Round) -> None:
        torch.nn.Module.__init__(self)
        self.out_features, self.in_features, self.dtype = form.out_features, form.in_features, form.dtype
        self.weight, self.rounded = weight, rounded

    def destinations(self) -> Iterator[Destination]:
        return iter(())

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(self.rounded(x), self.weight, bias)


def as_it_is(x: Tensor) -> Tensor:
    return x


def by_token(x: Tensor, parts: int = 1) -> Tensor:
    """parts  8-bit floats that a number is the sum of: two for up to 16 rows"""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / LARGEST
    scaled = x / scale
    rounded = scaled.to(torch.float8_e4m3fn).float()
    if parts == 2:
        rounded += ((scaled - rounded) * 16).to(torch.float8_e4m3fn).float() / 16
    return rounded * scale


def by_group(x: Tensor, parts: int = 1) -> Tensor:
    padded = F.pad(x, (0, -x.shape[-1] % 128))
    return by_token(padded.unflatten(-1, (-1, 128)), parts).flatten(-2)[..., : x.shape[-1]]


def fp8_rows(weight: Tensor) -> Tensor:
    return dequantize_fp8(Fp8Weight(*quantize_fp8_rows(weight)))


def fp8_tensor(weight: Tensor) -> Tensor:
    scale = weight.abs().amax() / LARGEST
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def fp8_blocks(weight: Tensor) -> Tensor:
    rows, columns = weight.shape
    blocks = F.pad(weight, (0, -columns % 128, 0, -rows % 128)).unflatten(1, (-1, 128)).unflatten(0, (-1, 128))
    largest = blocks.abs().amax((1, 3)).clamp(min=1e-12) / LARGEST
    scale = F.pad(largest, (0, fp8_scale_columns(columns) - largest.shape[1]))
    wide = largest.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    return dequantize_fp8(Fp8Weight((weight / wide).to(torch.float8_e4m3fn), scale))


def four_bits(group: int, *, sym: bool) -> Callable[[Tensor], Tensor]:
    """Rounded to the nearest, without the search that GPTQ and AWQ make."""

    def quantize(weight: Tensor) -> Tensor:
        groups = weight.unflatten(1, (-1, group))
        if sym:
            scale = (groups.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-12)
            return ((groups / scale).round().clamp(-8, 7) * scale).flatten(1)
        low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
        scale = ((high - low) / 15).clamp(min=1e-12)
        zero = (-low / scale).round()
        return (((groups / scale).round() + zero).clamp(0, 15) - zero).mul(scale).flatten(1)

    return quantize


SCHEMES: dict[str, tuple[Callable[[Tensor], Tensor], Round]] = {
    "fp8, a scale a row": (fp8_rows, by_token),
    "fp8, a scale a tensor": (fp8_tensor, by_token),
    "fp8, blocks of 128 x 128": (fp8_blocks, by_group),
    "fp8, a scale a row, two parts": (fp8_rows, partial(by_token, parts=2)),
    "fp8, blocks of 128 x 128, two parts": (fp8_blocks, partial(by_group, parts=2)),
    "4 bits, groups of 32": (four_bits(32, sym=True), as_it_is),
    "4 bits, groups of 64": (four_bits(64, sym=True), as_it_is),
    "4 bits, groups of 64, zero points": (four_bits(64, sym=False), as_it_is),
}


KV_CACHES = {"KV cache of fp8_e4m3": torch.float8_e4m3fn, "KV cache of fp8_e5m2": torch.float8_e5m2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    arguments = parser.parse_args()
    checkpoint = resolve("demo")
    arch = read_arch(checkpoint.config)
    model = load_model(checkpoint, arch, dtype=torch.float32, device="cpu", quantization="none")
    tokenizer = load_tokenizer(checkpoint)
    readme = tokenizer.encode(Path("README.md").read_text(encoding="utf-8"))[: arguments.tokens]
    texts = {
        "its own words": continuations(model, [tokenizer.encode(prompt) for prompt in PROMPTS], arguments.tokens),
        "the readme": [Text(readme, len(readme))],
    }
    bf16 = load_model(checkpoint, arch, dtype=torch.bfloat16, device="cpu", quantization="none")
    # Heads stay as they are.
    forms = {linear: linear.form for linear in model.linears() if not isinstance(linear, VocabularyLinear)}
    plain = {of: log_probs(model, text) for of, text in texts.items()}
    for of, expected in plain.items():
        print(f"{'bf16':36} {of:14} {compare(log_probs(bf16, texts[of]), expected)}", flush=True)
    for name, (quantize, rounded) in SCHEMES.items():
        weights = {linear: quantize(form.get_parameter("weight").float()) for linear, form in forms.items()}
        for linear, weight in weights.items():
            linear.form = Simulated(forms[linear], weight, as_it_is)
        exact = {of: log_probs(model, text) for of, text in texts.items()}
        for linear, weight in weights.items():
            linear.form = Simulated(forms[linear], weight, rounded)
        for of, text in texts.items():
            activations = compare(log_probs(model, text), exact[of])
            print(f"{name:36} {of:14} {activations}   {compare(exact[of], plain[of])}", flush=True)
    for name, kv_dtype in KV_CACHES.items():
        model = load_model(checkpoint, arch, dtype=torch.float32, device="cpu", quantization="none", kv_dtype=kv_dtype)
        for of, text in texts.items():
            print(f"{name:36} {of:14} {compare(log_probs(model, text, kv_dtype), plain[of])}", flush=True)


class Text(NamedTuple):
    """Tokens that are given, and how many of the last choices count."""

    tokens: list[int]
    num_counted: int


def continuations(model: CausalModel, prompts: list[list[int]], num_tokens: int) -> list[Text]:
    """What the model says after each prompt, `num_tokens` in all, and the prompts before it."""
    run, new = PagedRun(model), {str(number): prompt for number, prompt in enumerate(prompts)}
    said: dict[str, list[int]] = {number: [] for number in new}
    for _ in range(num_tokens // len(prompts)):
        logits = run.step(new)
        new = {number: [int(logits[number][-1].argmax())] for number in new}
        for number, tokens in new.items():
            said[number] += tokens
    return [Text(prompt + words[:-1], len(words)) for prompt, words in zip(prompts, said.values(), strict=True)]


@torch.inference_mode()
def log_probs(model: CausalModel, texts: list[Text], kv_dtype: torch.dtype | None = None) -> Tensor:
    """[counted choices, vocabulary]"""
    logits = [PagedRun(model, kv_dtype=kv_dtype).step({"a": text.tokens})["a"][-text.num_counted :] for text in texts]
    return torch.cat(logits).float().log_softmax(-1)


def compare(actual: Tensor, expected: Tensor) -> str:
    divergence = (expected.exp() * (expected - actual)).sum(-1)
    same = (actual.argmax(-1) == expected.argmax(-1)).float().mean()
    return f"same {same:.4f}  KL {divergence.mean():.2e} / {divergence.max():.2e}"


if __name__ == "__main__":
    main()
