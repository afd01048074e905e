"""Self-attention between its two projections: rotate, write to the cache, attend. The same in every family."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from streamserve.models.arch import ModelArch, QkNorm
from streamserve.models.division import shared_heads
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.destination import Destination, Region, Stored, copied
from streamserve.models.weights.kv_scales import kv_scales_of
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Heads, Scoring, head_squares, norm_all_heads_, rotary_attention


class Attention(nn.Module):
    """One layer's attention over the paged cache."""

    def __init__(self, arch: ModelArch, layer: int, prefix: str, place: Placement) -> None:
        """prefix + the names of `arch.qk_norm` are read where every head has a norm, and + those of the scales of its cache.

        Ranks have as many heads each, and share key heads where there are fewer than ranks. Raises `ConfigError` when they
        can't be divided so.
        """
        super().__init__()

        def head_norm(name: str) -> RmsNorm:
            return RmsNorm(prefix + name, arch.head_dim, place, eps=arch.norm_eps, offset=arch.norm_offset)

        self.layer = layer
        rope = arch.ropes[layer]
        norms = arch.qk_norm if arch.qk_norm is not None and arch.qk_norm.span == "head" else None
        self.q_norm = None if norms is None else head_norm(norms.q)
        self.k_norm = None if norms is None else head_norm(norms.k)
        self.heads = Heads(
            q_heads=len(place.share(arch.q_heads, "query heads")),
            kv_heads=len(shared_heads(arch.kv_heads, place.rank, place.world_size)),
            head_dim=arch.head_dim,
            q_norm=None if self.q_norm is None else self.q_norm.weight,
            k_norm=None if self.k_norm is None else self.k_norm.weight,
            eps=arch.norm_eps,
            norm_rotated=arch.qk_norm is not None and arch.qk_norm.rotated,
            interleaved=rope is not None and rope.interleaved,
            query_scaling=arch.query_scaling,
        )
        self.sinks = Sinks(arch, prefix, place) if arch.has_sinks else None
        sinks = None if self.sinks is None else self.sinks.weight
        self.scoring = Scoring(arch.attention_scale, arch.windows[layer], arch.softcap, sinks)
        self.kv_scales = kv_scales_of(prefix, place)

    def forward(self, qkv: Tensor, inputs: StepInputs, cos_sin: Tensor | None, kv_cache: Tensor) -> Tensor:
        """qkv [tokens, (q_heads + 2 * kv_heads) * head_dim] -> [tokens, q_heads * head_dim]; writes keys and values."""
        attended = rotary_attention(
            qkv,
            inputs.tokens(self.layer, cos_sin),
            kv_cache,
            inputs.sequences(self.layer),
            self.heads,
            self.scoring,
            kv_scales=self.kv_scales.scales if self.kv_scales is not None else None,
            shared=inputs.shared,
        )
        return attended.flatten(1)


class Sinks(Stored):
    """A score of each query head that no key has.

    weight  [q_heads] fp32
    """

    def __init__(self, arch: ModelArch, prefix: str, place: Placement) -> None:
        """prefix + "sinks" is read."""
        super().__init__()
        self._name = prefix + "sinks"
        self._region = Region((arch.q_heads,), (place.share(arch.q_heads, "query heads"),))
        self.weight = place.empty(len(self._region.ranges[0]), dtype=torch.float32)

    def destinations(self) -> Iterator[Destination]:
        yield copied(self._name, self.weight, self._region)


class AllHeadsNorm(nn.Module):
    """RMS norms over all query heads together, and over all key heads, wherever they are."""

    def __init__(self, arch: ModelArch, norms: QkNorm, prefix: str, place: Placement) -> None:
        """prefix + the names of `norms` are read, with a number for each row of q_proj and k_proj."""
        super().__init__()

        def norm(name: str, heads: int, taken: range) -> RmsNorm:
            rows = range(taken.start * arch.head_dim, taken.stop * arch.head_dim)
            size = heads * arch.head_dim
            return RmsNorm(prefix + name, size, place, eps=arch.norm_eps, offset=arch.norm_offset, taken=rows)

        self.q_norm = norm(norms.q, arch.q_heads, place.share(arch.q_heads, "query heads"))
        self.k_norm = norm(norms.k, arch.kv_heads, shared_heads(arch.kv_heads, place.rank, place.world_size))
        self.communicator = place.communicator if place.world_size > 1 else None

    def forward(self, qkv: Tensor) -> Tensor:
        """qkv [tokens, (q_heads + 2 * kv_heads) * head_dim] -> the same shape, its memory taken."""
        q_weight, k_weight, eps = self.q_norm.weight, self.k_norm.weight, self.q_norm.eps
        if self.communicator is None:
            norm_all_heads_(qkv, q_weight, k_weight, eps)
            return qkv
        # Key heads that several ranks hold count on each, and so do their columns.
        squares = self.communicator.sum(head_squares(qkv, len(q_weight), len(k_weight)))
        norm_all_heads_(qkv, q_weight, k_weight, eps, squares=squares, shares=self.communicator.world_size)
        return qkv


def all_heads_norm(arch: ModelArch, prefix: str, place: Placement) -> AllHeadsNorm | None:
    """Where the architecture has such norms."""
    norms = arch.qk_norm
    return AllHeadsNorm(arch, norms, prefix, place) if norms is not None and norms.span == "all" else None


def qkv_linear(arch: ModelArch, prefix: str, place: Placement) -> Linear:
    """The projection to queries, keys and values, which a rank has for its heads."""
    q, kv = arch.q_heads * arch.head_dim, arch.kv_heads * arch.head_dim
    return Linear(
        prefix,
        {"q_proj": q, "k_proj": kv, "v_proj": kv},
        arch.hidden_size,
        place,
        bias=arch.qkv_bias,
        stored_as="qkv_proj" if arch.fused_qkv else None,
        divided="rows",
        heads={"k_proj": arch.kv_heads, "v_proj": arch.kv_heads},
    )


def output_linear(arch: ModelArch, prefix: str, place: Placement, *, name: str = "o_proj") -> Linear:
    """The projection from heads back to the hidden state."""
    inner = arch.q_heads * arch.head_dim
    return Linear(prefix, {name: arch.hidden_size}, inner, place, bias=arch.output_bias, divided="columns")
