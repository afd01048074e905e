"""Self-attention between its two projections: rotate, write to the cache, attend. The same in every family."""

from __future__ import annotations

from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.division import shared_heads
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.placement import Placement
from streamserve_kernels import rotary_attention


class Attention(nn.Module):
    """One layer's attention over the paged cache."""

    def __init__(self, arch: ModelArch, layer: int, prefix: str, place: Placement, *, norm_offset: float = 0.0) -> None:
        """prefix + "q_norm.weight" and prefix + "k_norm.weight" are read where the family norms its heads.

        Ranks have as many heads each, and share key heads where there are fewer than ranks. Raises `ConfigError` when they
        can't be divided so.
        """
        super().__init__()

        def head_norm(name: str) -> RmsNorm | None:
            if not arch.qk_norm:
                return None
            return RmsNorm(prefix + name, arch.head_dim, place, eps=arch.norm_eps, offset=norm_offset)

        self.layer = layer
        self.q_heads = len(place.share(arch.q_heads, "query heads"))
        self.kv_heads = len(shared_heads(arch.kv_heads, place.rank, place.world_size))
        self.head_dim, self.eps = arch.head_dim, arch.norm_eps
        self.scale, self.window, self.softcap = arch.attention_scale, arch.windows[layer], arch.softcap
        self.q_norm, self.k_norm = head_norm("q_norm"), head_norm("k_norm")

    def forward(self, qkv: Tensor, inputs: StepInputs, cos_sin: Tensor | None, kv_cache: Tensor) -> Tensor:
        """qkv [tokens, (q_heads + 2 * kv_heads) * head_dim] -> [tokens, q_heads * head_dim]; writes keys and values."""
        attended = rotary_attention(
            qkv,
            inputs.positions,
            cos_sin,
            kv_cache,
            inputs.slot_mapping[self.layer],
            inputs.block_tables[self.layer],
            inputs.seq_lens,
            inputs.query_start,
            q_heads=self.q_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            q_norm=self.q_norm.weight if self.q_norm is not None else None,
            k_norm=self.k_norm.weight if self.k_norm is not None else None,
            eps=self.eps,
            scale=self.scale,
            window=self.window,
            softcap=self.softcap,
            num_decodes=inputs.num_decodes,
            max_seq_len=inputs.max_seq_len,
            shared=inputs.shared,
        )
        return attended.flatten(1)


def qkv_linear(arch: ModelArch, prefix: str, place: Placement) -> Linear:
    """The projection to queries, keys and values, which a rank has for its heads."""
    q, kv = arch.q_heads * arch.head_dim, arch.kv_heads * arch.head_dim
    return Linear(
        prefix,
        {"q_proj": q, "k_proj": kv, "v_proj": kv},
        arch.hidden_size,
        place,
        bias=arch.qkv_bias,
        stored_as="qkv_proj" if arch.fused_in_checkpoint else None,
        divided="rows",
        heads={"k_proj": arch.kv_heads, "v_proj": arch.kv_heads},
    )


def output_linear(arch: ModelArch, prefix: str, place: Placement, *, name: str = "o_proj") -> Linear:
    """The projection from heads back to the hidden state."""
    inner = arch.q_heads * arch.head_dim
    return Linear(prefix, {name: arch.hidden_size}, inner, place, bias=arch.output_bias, divided="columns")
