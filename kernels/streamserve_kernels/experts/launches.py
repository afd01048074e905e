"""One of the two products with experts, and how a kernel for any kind of weight is launched for it."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch

from streamserve_kernels.experts.tiles import HeldTokens, LoneToken, ProductShape
from streamserve_kernels.launch import Kernel, dependent_launch, power_of_two
from streamserve_kernels.reference.experts import Routes
from streamserve_kernels.reference.quantized_experts import ExpertsWeight

W = TypeVar("W", bound=ExpertsWeight)


class Layer(NamedTuple, Generic[W]):
    """The experts of a layer, as `reference.experts.experts_residual` has them; both weights are of one kind."""

    gate_up: W
    down: W
    gate_up_bias: torch.Tensor | None
    down_bias: torch.Tensor | None
    activation: str
    first_expert: int

    @property
    def num_experts(self) -> int:
        return self.gate_up.shape[0]


class Product(NamedTuple, Generic[W]):
    """A product of tokens with the weights of their experts: of gate and up, which is by token, or of down.

    x       [tokens, in] by token, else [places, in]
    out     [places, out], or half as many columns with an activation, for which weight rows of gate and up alternate
    tokens  which experts they go to
    """

    x: torch.Tensor
    weight: W
    bias: torch.Tensor | None
    out: torch.Tensor
    tokens: HeldTokens | LoneToken
    activation: str
    by_token: bool

    @classmethod
    def of_gate_up(
        cls, routes: Routes, layer: Layer[W], tokens: HeldTokens | LoneToken, *, is_zeroed: bool = False
    ) -> Product[W]:
        """is_zeroed  so that places of experts that are elsewhere hold zeros; else they are not written"""
        x, weight = routes.normed, layer.gate_up
        make = x.new_zeros if is_zeroed else x.new_empty
        out = make(tokens.num_places, weight.shape[1] // 2)
        return cls(x, weight, layer.gate_up_bias, out, tokens, layer.activation, True)

    @classmethod
    def of_down(cls, gated: torch.Tensor, layer: Layer[W], tokens: HeldTokens | LoneToken) -> Product[W]:
        """gated  what the other product made"""
        out = gated.new_empty(tokens.num_places, layer.down.shape[1])
        return cls(gated, layer.down, layer.down_bias, out, tokens, "none", False)

    def launch(self, kernel: Kernel, shape: ProductShape, *operands: object, **constants: object) -> None:
        """Launch a kernel that takes x, these operands, and then what is the same for all kinds of weights."""
        num_experts, outer, inner = self.weight.shape
        tokens = self.tokens
        kernel[(tokens.num_programs(outer, shape),)](
            self.x, *operands, self.bias, self.out, tokens.counts, tokens.places, tokens.num_tokens, num_experts,
            N=outer, K=inner, TOP_K=tokens.top_k, LANES=power_of_two(num_experts), BLOCK_M=shape.block_m,
            BY_TOKEN=self.by_token, ACTIVATION=self.activation, **constants,
            num_warps=shape.warps, num_stages=shape.stages, **dependent_launch(self.x.device),
        )  # fmt: skip
