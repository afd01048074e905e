"""Ranks hold shares of a model: together they are the whole, and what can't be divided is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from streamserve.errors import ConfigError
from streamserve.models.architectures.base import CausalModel
from streamserve.models.communicator import Apart
from streamserve.models.layers.linear import Division, Linear
from streamserve.models.weights.forms.int4 import Int4Form
from streamserve.models.weights.placement import Placement
from tests.models.families import FAMILIES, SHAPE, reference_model
from tests.models.gguf_files import write_gguf
from tests.models.ranks import load_rank
from tests.models.stored import fill

ROWS = ("qkv", "mlp.gate_up", "up")
COLUMNS = ("output", "mlp.down", "down")


def linears(model: CausalModel, names: tuple[str, ...]) -> Iterator[tuple[str, Linear]]:
    for index, layer in enumerate(model.layers):
        for name, module in layer.named_modules():
            if name in names and isinstance(module, Linear):
                yield f"{index}.{name}", module


def parts_of_rows(linear: Linear, model: CausalModel, name: str) -> list[Tensor]:
    """The weight of a linear whose rows are divided, cut into what is divided apart: q, k and v, or gate and up."""
    weight = linear.form.get_parameter("weight")
    heads = model.layers[0].attention.heads
    q, kv = heads.q_heads * heads.head_dim, heads.kv_heads * heads.head_dim
    if name.endswith("qkv"):
        return list(weight.split([q, kv, kv]))
    return list(weight.chunk(2)) if name.endswith("gate_up") else [weight]


@pytest.mark.parametrize("family", ["llama", "llama-biased", "phi3", "qwen3", "opt"])
def test_the_shares_of_two_ranks_are_the_weights_of_one(family: str, tmp_path: Path) -> None:
    reference_model(*FAMILIES[family]).save_pretrained(tmp_path)
    whole, ranks = load_rank(tmp_path, 0, 1), [load_rank(tmp_path, rank, 2) for rank in range(2)]
    for kind, names in (("rows", ROWS), ("columns", COLUMNS)):
        shares = [dict(linears(rank, names)) for rank in ranks]
        found = dict(linears(whole, names))
        assert found
        for name, linear in found.items():
            weight, of_ranks = linear.form.get_parameter("weight"), [share[name] for share in shares]
            if kind == "columns":
                assert torch.equal(torch.cat([each.form.get_parameter("weight") for each in of_ranks], dim=1), weight)
                continue
            cut = [parts_of_rows(each, rank, name) for each, rank in zip(of_ranks, ranks, strict=True)]
            assert torch.equal(torch.cat([torch.cat(parts) for parts in zip(*cut, strict=True)]), weight)


@pytest.mark.parametrize(
    "family",
    ["llama", "llama-biased", "phi3", "qwen2", "qwen3", "smollm3", "glm4", "gemma2", "opt", "qwen2-moe", "qwen3-moe"],
)
def test_summing_what_ranks_compute_gives_what_one_computes(family: str, tmp_path: Path) -> None:
    """Around attention, whose heads are independent: queries, keys and values side by side, outputs and MLPs summed."""
    reference_model(*FAMILIES[family]).save_pretrained(tmp_path)
    whole, ranks = load_rank(tmp_path, 0, 1), [load_rank(tmp_path, rank, 2) for rank in range(2)]
    hidden = torch.randn(3, whole.arch.hidden_size)
    attended = torch.randn(3, whole.arch.q_heads * whole.arch.head_dim)
    with torch.inference_mode():
        layers = [rank.layers[1] for rank in ranks]
        heads = layers[0].attention.heads
        sizes = [heads.q_heads, heads.kv_heads, heads.kv_heads]
        per_rank = [
            layer.before_attention(hidden).split([size * whole.arch.head_dim for size in sizes], dim=1) for layer in layers
        ]
        together = torch.cat([torch.cat(parts, dim=1) for parts in zip(*per_rank, strict=True)], dim=1)
        torch.testing.assert_close(together, whole.layers[1].before_attention(hidden))

        output = whole.layers[1].output
        inputs = zip((layer.output for layer in layers), attended.chunk(2, dim=1), strict=True)
        torch.testing.assert_close(sum(each(x) for each, x in inputs), output(attended), atol=1e-4, rtol=1e-4)
        if hasattr(whole.layers[1], "mlp"):
            mlp = sum(layer.mlp(hidden) for layer in layers)
            torch.testing.assert_close(mlp, whole.layers[1].mlp(hidden), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q8_0])
def test_packed_weights_are_divided_as_dense_ones_are(kind: Kind, tmp_path: Path) -> None:
    shape = SHAPE | {"vocab_size": 208, "hidden_size": 128, "intermediate_size": 192, "num_attention_heads": 4}
    file = tmp_path / "model.gguf"
    write_gguf(reference_model("Llama", shape), file, kind, embedding_kind=Kind.Q8_0)
    whole, ranks = load_rank(file, 0, 1, torch.bfloat16), [load_rank(file, rank, 2, torch.bfloat16) for rank in range(2)]
    x = torch.randn(2, 192).bfloat16()
    down, shares = whole.layers[0].mlp.down, [rank.layers[0].mlp.down for rank in ranks]
    assert all(isinstance(each.form, Int4Form) for each in (down, *shares))
    with torch.inference_mode():
        total = sum(each(part).float() for each, part in zip(shares, x.chunk(2, dim=1), strict=True))
        torch.testing.assert_close(total, down(x).float(), atol=2e-2, rtol=2e-2)
        hidden = torch.randn(2, 128).bfloat16()
        gate_up = [rank.layers[0].mlp.gate_up(hidden).chunk(2, dim=1) for rank in ranks]
        together = torch.cat([torch.cat(parts, dim=1) for parts in zip(*gate_up, strict=True)], dim=1)
        torch.testing.assert_close(together.float(), whole.layers[0].mlp.gate_up(hidden).float(), atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("divided", ["rows", "columns"])
def test_a_bias_is_divided_with_its_rows_and_stays_on_one_rank_where_columns_are(divided: Division) -> None:
    bias = torch.arange(4.0)
    stored = {"up.weight": torch.zeros(4, 6), "up.bias": bias}
    ranks = [
        Linear("", {"up": 4}, 6, Placement(torch.float32, torch.device("cpu"), Apart(rank, 2)), bias=True, divided=divided)
        for rank in range(2)
    ]
    biases = [fill(linear, stored).bias for linear in ranks]
    if divided == "rows":
        assert torch.equal(torch.cat([each for each in biases if each is not None]), bias)
    else:
        assert torch.equal(biases[0], bias)
        assert biases[1] is None


@pytest.mark.parametrize(
    ("family", "world_size", "message"),
    [
        ("llama", 4, "6 query heads|96 rows|32 rows"),
        ("llama", 3, "2 key heads can.t be divided among 3 ranks: use a --tensor-parallel-size"),
        ("llama", 6, "among 6"),
    ],
)
def test_what_can_not_be_divided_is_refused_by_name(family: str, world_size: int, message: str, tmp_path: Path) -> None:
    reference_model(*FAMILIES[family]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_rank(tmp_path, 0, world_size)


def test_heads_are_not_cut_even_where_their_rows_could_be(tmp_path: Path) -> None:
    reference_model("Llama", SHAPE | {"num_attention_heads": 6, "num_key_value_heads": 2}).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="6 query heads can't be divided among 4 ranks"):
        load_rank(tmp_path, 0, 4)
