"""A mixture of experts in the place of an MLP: a norm and a router, the experts it chooses, and one that all tokens have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.mlp import GatedMlp, gate_activation
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.mixture import Mixture, SharedExpert
from streamserve.models.weights.destination import Destination, Stored, copied
from streamserve.models.weights.experts.choose import make_experts
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Activation, Routes, norm_route


class Router(Stored):
    """Chooses experts for normed tokens. Every rank has all of it, so that all choose alike.

    weight       [experts, hidden]
    bias         [experts], or None
    choice_bias  [experts] fp32, or None
    """

    def __init__(self, mixture: Mixture, hidden_size: int, prefix: str, place: Placement) -> None:
        """prefix + `mixture.router` and prefix + `mixture.choice_bias` are read."""
        super().__init__()
        self.rule = mixture.rule
        self._prefix, self._mixture = prefix, mixture
        self.weight = place.empty(mixture.num_experts, hidden_size)
        self.bias = place.empty(mixture.num_experts) if mixture.router_bias else None
        chooses_by_bias = mixture.choice_bias is not None
        self.choice_bias = place.empty(mixture.num_experts, dtype=torch.float32) if chooses_by_bias else None

    def forward(self, hidden: Tensor, norm: RmsNorm) -> Routes:
        """hidden [tokens, hidden_size], not normed yet"""
        return norm_route(hidden, norm.weight, norm.eps, self.weight, self.rule, bias=self.bias, choice_bias=self.choice_bias)

    def destinations(self) -> Iterator[Destination]:
        name = self._prefix + self._mixture.router
        yield copied(f"{name}.weight", self.weight)
        if self.bias is not None:
            yield copied(f"{name}.bias", self.bias)
        if self.choice_bias is not None:
            yield copied(f"{self._prefix}{self._mixture.choice_bias}", self.choice_bias)


class Experts(Stored):
    """The experts that tokens are routed to, as many of them and as much of each as this rank holds.

    form  of their weights
    """

    form: ExpertsForm

    def __init__(self, arch: ModelArch, mixture: Mixture, prefix: str, place: Placement) -> None:
        super().__init__()
        spec = ExpertsSpec.of(mixture, arch.hidden_size, prefix, place)
        self.activation: Activation = gate_activation(arch) if mixture.activation is None else mixture.activation
        self.form = make_experts(spec, place)

    def add_to(self, total: Tensor, routes: Routes) -> Tensor:
        """total [tokens, hidden_size] + this rank's part of the experts' weighted sum; `total` is not to be used afterwards."""
        return self.form.onto(total, routes, self.activation)

    def finish(self) -> None:
        """Bring the weights, now filled, into the layout that their kernels want."""
        self.form.finish()

    def destinations(self) -> Iterator[Destination]:
        return self.form.destinations()


class SharedMlp(nn.Module):
    """The expert that every token has, scaled by a sigmoid of the token where it has a gate."""

    def __init__(self, arch: ModelArch, shared: SharedExpert, prefix: str, place: Placement, norm: RmsNorm) -> None:
        super().__init__()
        arch = replace(arch, intermediate_size=shared.inner_size)
        self.mlp = GatedMlp(arch, f"{prefix}{shared.name}.", place, norm)
        gate = shared.gate
        self.gate = None if gate is None else Linear(prefix, {gate: 1}, arch.hidden_size, place)

    def add_to(self, total: Tensor, hidden: Tensor, normed: Tensor) -> Tensor:
        """total + this rank's part of what it makes of the hidden state; `total` is not to be used afterwards.

        total, hidden, normed  [tokens, hidden_size]; the last is the hidden state after the norm
        """
        inner = self.mlp.gate_up.gated_after_norm(hidden, self.mlp.norm, self.mlp.activation)
        if self.gate is not None:
            inner = inner * torch.sigmoid(self.gate(normed))
        return self.mlp.down.form.onto(total, inner, self.mlp.down.bias)


class SparseMlp(nn.Module):
    """Of each token, the weighted sum of what its experts make of it, and of the shared one (Shazeer et al., 2017).

    On a GPU up to 16 rows take four launches: norm, router and choice; gate·up with the activation; down; the sum. One row
    takes three, its sum being part of down, unless experts have four bits; up to 64 one more, and above two more.
    """

    def __init__(self, arch: ModelArch, mixture: Mixture, prefix: str, place: Placement, norm: RmsNorm) -> None:
        """prefix  of the layer"""
        super().__init__()
        prefix += mixture.name
        self.norm = norm
        self.router = Router(mixture, arch.hidden_size, prefix, place)
        self.experts = Experts(arch, mixture, prefix, place)
        shared = mixture.shared
        self.shared = None if shared is None else SharedMlp(arch, shared, prefix, place, norm)
        self.communicator = place.communicator if place.world_size > 1 else None

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden [tokens, hidden_size] -> the same shape, without the residual"""
        total = self._add_to(torch.zeros_like(hidden), hidden)
        return total if self.communicator is None else self.communicator.sum(total)

    def onto(self, hidden: Tensor) -> Tensor:
        """hidden + forward(hidden); `hidden` is not to be used afterwards."""
        if self.communicator is None:
            return self._add_to(hidden, hidden)
        return self.communicator.sum_products(self._product, hidden, hidden, hidden.shape[1])

    def _product(self, hidden: Tensor, residual: Tensor | None) -> Tensor:
        return self._add_to(torch.zeros_like(hidden) if residual is None else residual, hidden)

    def _add_to(self, total: Tensor, hidden: Tensor) -> Tensor:
        routes = self.router(hidden, self.norm)
        if self.shared is not None:
            total = self.shared.add_to(total, hidden, routes.normed)
        return self.experts.add_to(total, routes)


def mlp_of(arch: ModelArch, layer: int, prefix: str, place: Placement, norm: RmsNorm | None) -> GatedMlp | SparseMlp:
    """What follows attention in a layer: its mixture of experts, or an MLP. prefix  of the layer's tensors"""
    if arch.mixture is None or not arch.mixture.layers[layer]:
        return GatedMlp(arch, prefix + "mlp.", place, norm)
    assert norm is not None
    return SparseMlp(arch, arch.mixture, prefix, place, norm)
