"""Self-attention between its two projections: rotate, write to the cache, attend. The same in every family."""

from __future__ import annotations

from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.placement import Placement
from streamserve_kernels import rotary_attention


class Attention(nn.Module):
    """One layer's attention over the paged cache."""

    def __init__(self, arch: ModelArch, layer: int, prefix: str, place: Placement, *, norm_offset: float = 0.0) -> None:
        """prefix + "q_norm.weight" and prefix + "k_norm.weight" are read where the family norms its heads."""
        super().__init__()
        self.layer = layer
        self.q_heads, self.kv_heads, self.head_dim = arch.q_heads, arch.kv_heads, arch.head_dim
        self.eps = arch.norm_eps
        self.scale, self.window, self.softcap = arch.attention_scale, arch.windows[layer], arch.softcap
        self.q_norm = RmsNorm(prefix + "q_norm", arch.head_dim, place, offset=norm_offset) if arch.qk_norm else None
        self.k_norm = RmsNorm(prefix + "k_norm", arch.head_dim, place, offset=norm_offset) if arch.qk_norm else None

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
