"""A model's shape: everything that its layers, its weights and its KV cache are built from.

Plain values; what differs between families is a field here or a module in `architectures`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from streamserve.models.division import shared_heads
from streamserve.models.mixture import Mixture
from streamserve.models.rope import Rope
from streamserve_kernels import QueryScaling

Activation = Literal["silu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class PagedKv:
    """What a layer keeps for a sequence: a key and a value of each of its tokens, in every KV head.

    window  how many tokens the newest one sees, itself included: older ones need not be kept; None keeps all
    """

    kv_heads: int
    head_dim: int
    window: int | None

    def among(self, world_size: int) -> PagedKv:
        """What each of so many ranks keeps of it. Raises `ConfigError` when the heads can't be divided among them."""
        return replace(self, kv_heads=len(shared_heads(self.kv_heads, 0, world_size)))


@dataclass(frozen=True)
class BlockNorms:
    """The norms before and after a layer's blocks, attention and MLP, by the checkpoint's names; None where there is none."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None


@dataclass(frozen=True)
class QkNorm:
    """RMS norms of queries and keys.

    span     "head": of every head on its own; "all": of all query heads together, and of all key heads
    rotated  after the rotation instead of before it
    q, k     the checkpoint's names
    """

    span: Literal["head", "all"] = "head"
    rotated: bool = False
    q: str = "q_norm"
    k: str = "k_norm"


@dataclass(frozen=True, kw_only=True)
class Arch(ABC):
    """What an engine needs to know of any model, whoever wrote its layers.

    model_impl       whose layers these are: "streamserve" or "transformers"
    architecture     transformers' class name
    dtype            of the checkpoint: "bfloat16", "float16" or "float32"
    max_model_len    tokens of one sequence that the positions of this model reach
    default_model_len  what is served of it unless more is requested, where a longer context costs short ones quality; None
                     serves all
    tied_embeddings  the head is the embedding matrix, unless the checkpoint stores a head that differs from it
    """

    model_impl: ClassVar[str]
    architecture: str
    dtype: str
    vocab_size: int
    max_model_len: int
    default_model_len: int | None = None
    tied_embeddings: bool = False

    @property
    @abstractmethod
    def layer_states(self) -> tuple[PagedKv, ...]:
        """What each layer keeps for a sequence."""


@dataclass(frozen=True, kw_only=True)
class ModelArch(Arch):
    """The shape of one decoder-only transformer.

    architecture      transformers' class name, the key of the registry
    dtype             of the checkpoint: "bfloat16", "float16" or "float32"
    max_model_len     tokens of one sequence that the positions of this model reach
    windows           per layer: how many tokens a token sees, itself included; None sees all
    ropes             per layer: its rotation; None where nothing is rotated
    attention_scale   factor of the attention scores
    softcap           of the attention scores, or None
    query_scaling     by which queries grow with their position, or None
    has_sinks         every query head has a score beside those of the keys
    logit_softcap     of the logits, or None
    logit_scale       factor of the logits
    embedding_scale   factor of the embeddings
    norms             around the blocks of a layer
    norm_offset       added to the stored weights of RMS norms
    qk_norm           of queries and keys, or None
    qkv_bias, output_bias, mlp_bias  which linears have one
    tied_embeddings   the head is the embedding matrix, unless the checkpoint stores a head that differs from it
    fused_qkv, fused_gate_up  q, k and v are stored as one tensor; gate and up are
    unread_layers     how many layers past the last a checkpoint may store, which are not run
    mixture           of experts, in the place of the MLP of some layers; None where all have one
    """

    model_impl = "streamserve"
    architecture: str
    dtype: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    max_model_len: int
    norm_eps: float
    activation: Activation
    windows: tuple[int | None, ...]
    ropes: tuple[Rope | None, ...]
    attention_scale: float
    softcap: float | None = None
    query_scaling: QueryScaling | None = None
    has_sinks: bool = False
    logit_softcap: float | None = None
    logit_scale: float = 1.0
    embedding_scale: float = 1.0
    norms: BlockNorms = BlockNorms()
    norm_offset: float = 0.0
    qk_norm: QkNorm | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    tied_embeddings: bool = False
    fused_qkv: bool = False
    fused_gate_up: bool = False
    unread_layers: int = 0
    mixture: Mixture | None = None

    @property
    def layer_states(self) -> tuple[PagedKv, ...]:
        """What each layer keeps for a sequence."""
        return tuple(PagedKv(self.kv_heads, self.head_dim, window) for window in self.windows)
