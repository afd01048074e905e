"""Modules of transformers that we know, replaced by ours, which have kernels and whose weights have forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from streamserve.models.layers.linear import Linear, Projection, VocabularyLinear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.transformers_model.attention_function import PagedLayer, PagedStep
from streamserve.models.transformers_model.classes import as_untyped
from streamserve.models.transformers_model.known import (
    GATE_UP,
    OUTPUTS,
    QKV,
    Known,
    angles_of,
    eps_of,
    linears,
    names_of,
)
from streamserve.models.transformers_model.survey import AttentionCall
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Activation, Heads, Scoring, gated_activation


class WeightWanted(Exception):
    """Somebody wants the weight of a linear, which has no tensor of it in every form."""

    def __init__(self, name: str) -> None:
        """name  of the linear in the module that has it"""
        super().__init__(f"{name} has no weight of its own")
        self.linear = name


class BatchLinear(nn.Module):
    """A linear of ours for states with any number of leading dimensions."""

    def __init__(self, name: str, linear: Projection, in_features: int, out_features: int) -> None:
        super().__init__()
        self.name = name
        self.linear = linear
        self.in_features, self.out_features = in_features, out_features

    @property
    def weight(self) -> Tensor:
        raise WeightWanted(self.name)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] -> [..., out_features]"""
        y: Tensor = self.linear(x.reshape(-1, x.shape[-1]))
        return y.view(*x.shape[:-1], self.out_features)


class BatchMlp(nn.Module):
    """down(act(gate) * up), with gate and up in one product."""

    def __init__(self, gate_up: Linear, down: Linear, activation: Activation) -> None:
        super().__init__()
        self.gate_up, self.down = gate_up, down
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """x [..., hidden] -> the same shape"""
        made: Tensor = self.down(gated_activation(self.gate_up(x.reshape(-1, x.shape[-1])), self.activation))
        return made.view(x.shape)

    def onto(self, hidden: Tensor, norm: RmsNorm) -> Tensor:
        """hidden [tokens, hidden] + forward(norm(hidden)); `hidden` is not to be used afterwards."""
        return self.down.onto(hidden, self.gate_up.gated_after_norm(hidden, norm, self.activation))


class BatchAttention(nn.Module):
    """Self-attention between its two projections, queries, keys and values in one product, rotated where they are used."""

    def __init__(
        self, call: AttentionCall, layer: PagedLayer, qkv: Linear, output: Linear, norms: tuple[RmsNorm, RmsNorm] | None
    ) -> None:
        """norms  of query and key heads"""
        super().__init__()
        self.q_norm: RmsNorm | None
        self.k_norm: RmsNorm | None
        self._layer = layer
        self.qkv, self.output = qkv, output
        self.q_norm, self.k_norm = (None, None) if norms is None else norms
        self._heads = Heads(call.q_heads, call.kv_heads, call.key_size)
        if norms is not None:
            q_norm, k_norm = norms
            self._heads = self._heads._replace(q_norm=q_norm.weight, k_norm=k_norm.weight, eps=q_norm.eps)
        self._scoring = Scoring(call.scale, call.window, call.softcap)

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor] | None = None, **options: Any
    ) -> tuple[Tensor, None]:
        """hidden_states [1, tokens, hidden]; position_embeddings  cosines and sines, [1, tokens, rot_dim] each"""
        output: Tensor = self.output(self.attended(self.qkv(hidden_states[0]), position_embeddings, options))
        return output[None], None

    def onto(
        self, hidden: Tensor, norm: RmsNorm, position_embeddings: tuple[Tensor, Tensor] | None, options: dict[str, Any]
    ) -> Tensor:
        """hidden [tokens, hidden] + forward(norm(hidden)); `hidden` is not to be used afterwards."""
        attended = self.attended(self.qkv.after_norm(hidden, norm), position_embeddings, options)
        return self.output.onto(hidden, attended)

    def attended(self, qkv: Tensor, rotation: tuple[Tensor, Tensor] | None, options: dict[str, Any]) -> Tensor:
        """qkv [tokens, (q_heads + 2 * kv_heads) * head_dim] -> [tokens, q_heads * head_dim]"""
        step = self._layer.step(options)
        return self._layer.attend(qkv, step, _angles(step, rotation), self._heads, self._scoring).flatten(1)


class BatchLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), in the launches of a layer of ours."""

    def __init__(self, attention_norm: RmsNorm, attention: BatchAttention, mlp_norm: RmsNorm, mlp: BatchMlp) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp

    def forward(
        self, hidden_states: Tensor, position_embeddings: tuple[Tensor, Tensor] | None = None, **options: Any
    ) -> Tensor:
        """hidden_states [1, tokens, hidden], not to be used afterwards -> the same shape"""
        hidden = self.attention.onto(hidden_states[0], self.attention_norm, position_embeddings, options)
        return self.mlp.onto(hidden, self.mlp_norm)[None]


def _angles(step: PagedStep, rotation: tuple[Tensor, Tensor] | None) -> Tensor | None:
    """The step's angles, made once for all layers with this rotation."""
    if rotation is None:
        return None
    # The cosines are kept beside them: others could else be made in their place, with their `id`.
    kept = step.inputs.shared.get(("angles", id(rotation[0])), lambda: (rotation[0], angles_of(*rotation)))
    return kept[1]


def replace_modules(
    model: PreTrainedModel,
    place: Placement,
    known: Known,
    kept: frozenset[str],
    layers: dict[str, tuple[AttentionCall, PagedLayer]],
) -> None:
    """Replace the modules of known classes, and all other linears but those of the names in `kept`.

    place   where to allocate what takes their place; the model is on the meta device
    layers  the attention of each module, by its name
    """
    tied = _tied_head(model, place)
    makers: list[Callable[[str, nn.Module], nn.Module | None]] = [
        lambda name, module: _layer(name, module, place, known, layers),
        lambda name, module: _attention(name, module, place, known, layers),
        lambda name, module: _mlp(name, module, place, known),
        lambda name, module: _norm(name, module, place, known),
        lambda name, module: _linear(name, module, place, kept, tied),
    ]
    _replace_in(model, "", makers)


def _replace_in(parent: nn.Module, prefix: str, makers: list[Callable[[str, nn.Module], nn.Module | None]]) -> None:
    for name, child in list(parent.named_children()):
        path = prefix + name
        ours = next((made for make in makers if (made := make(path, child)) is not None), None)
        if ours is not None:
            setattr(parent, name, ours)
        else:
            _replace_in(child, f"{path}.", makers)


def _layer(
    name: str, module: nn.Module, place: Placement, known: Known, layers: dict[str, tuple[AttentionCall, PagedLayer]]
) -> BatchLayer | None:
    names = known.layers.get(type(module))
    if names is None:
        return None
    parts = {part: (f"{name}.{part}", module.get_submodule(part)) for part in names}
    attention_norm, mlp_norm = (_norm(*parts[part], place, known) for part in (names.attention_norm, names.mlp_norm))
    attention, mlp = _attention(*parts[names.attention], place, known, layers), _mlp(*parts[names.mlp], place, known)
    if attention_norm is None or mlp_norm is None or attention is None or mlp is None:
        return None
    return BatchLayer(attention_norm, attention, mlp_norm, mlp)


def _attention(
    name: str, module: nn.Module, place: Placement, known: Known, layers: dict[str, tuple[AttentionCall, PagedLayer]]
) -> BatchAttention | None:
    if type(module) not in known.attentions or name not in layers:
        return None
    qkv, output = _fused(name, module, QKV, place), _fused(name, module, tuple((each,) for each in OUTPUTS), place)
    norms = [
        norm
        for part in ("q_norm", "k_norm")
        if (found := getattr(module, part, None)) is not None and (norm := _norm(f"{name}.{part}", found, place, known))
    ]
    return BatchAttention(*layers[name], qkv, output, (norms[0], norms[1]) if norms else None)


def _mlp(name: str, module: nn.Module, place: Placement, known: Known) -> BatchMlp | None:
    activation = known.mlps.get(type(module))
    if activation is None:
        return None
    return BatchMlp(_fused(name, module, GATE_UP, place), _fused(name, module, (("down_proj",),), place), activation)


def _norm(name: str, module: nn.Module, place: Placement, known: Known) -> RmsNorm | None:
    offset, eps = known.norms.get(type(module)), eps_of(module)
    if offset is None or eps is None:
        return None
    return RmsNorm(name, as_untyped(module).weight.shape[0], place, eps=eps, offset=offset)


def _tied_head(model: PreTrainedModel, place: Placement) -> Callable[[nn.Linear], VocabularyLinear | None]:
    """Makes the linear of a head whose weight is the embedding's; None of any other."""
    embedding = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is embedding)
    shape, shared = embedding.weight.shape, embedding.weight

    def make(module: nn.Linear) -> VocabularyLinear | None:
        if module.weight is not shared or module.bias is not None:
            return None
        embedding.weight = place.empty(*shape)
        return VocabularyLinear(name, *shape, place, table=embedding.weight)

    return make


def _linear(
    name: str, module: nn.Module, place: Placement, kept: frozenset[str], tied: Callable[[nn.Linear], VocabularyLinear | None]
) -> BatchLinear | None:
    leaf = name.rpartition(".")[2]
    if type(module) is not nn.Linear or leaf in kept:
        return None
    made: Projection = tied(module) or Linear(
        name.removesuffix(leaf), {leaf: module.out_features}, module.in_features, place, bias=module.bias is not None
    )
    return BatchLinear(leaf, made, module.in_features, module.out_features)


def _fused(name: str, module: nn.Module, choices: tuple[tuple[str, ...], ...], place: Placement) -> Linear:
    """One linear of ours for those of the first choice that the module has."""
    names = names_of(module, choices)
    parts = linears(module, *names) or []
    rows = {part: linear.out_features for part, linear in zip(names, parts, strict=True)}
    return Linear(f"{name}.", rows, parts[0].in_features, place, bias=parts[0].bias is not None)
