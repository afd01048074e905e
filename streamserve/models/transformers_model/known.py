"""Which of a model's modules are ones that we know: told by what they make of what they get, not by their names.

A module that has the parts of one we know, and returned what ours returns for the same input, is one. Decided for whole
classes: all of a class's modules, in a small model that has every kind of layer, must agree.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from streamserve.models.transformers_model.attention_function import Attending, bind, bound
from streamserve.models.transformers_model.classes import as_untyped
from streamserve_kernels import Activation, Heads, StepTokens, gated_activation, rms_norm, rotary_write

T = TypeVar("T")

QKV = (("q_proj", "k_proj", "v_proj"), ("qkv_proj",))
GATE_UP = (("gate_proj", "up_proj"), ("gate_up_proj",))
OUTPUTS = ("o_proj", "out_proj", "dense")
EPS = ("variance_epsilon", "eps")
GATES: tuple[Activation, ...] = ("silu", "gelu_tanh")

_CLOSE = 1e-4


class LayerParts(NamedTuple):
    """The names of a layer's parts: x + attention(norm(x)), then x + mlp(norm(x))."""

    attention_norm: str
    attention: str
    mlp_norm: str
    mlp: str


@dataclass(frozen=True)
class Known:
    """Classes of modules that we have.

    norms       RMS norms, and what each adds to its weight
    mlps        gated MLPs, and their activation
    layers      what does nothing but add an attention of its norm, and an MLP of its norm; each of them known
    attentions  what makes queries, keys and values of one state by linears, norms of heads (maybe) and a rotation of halves
    """

    norms: Mapping[type, float] = field(default_factory=dict)
    mlps: Mapping[type, Activation] = field(default_factory=dict)
    attentions: frozenset[type] = frozenset()
    layers: Mapping[type, LayerParts] = field(default_factory=dict)

    def __and__(self, other: Known) -> Known:
        """What both say."""
        return Known(
            dict(self.norms.items() & other.norms.items()),
            dict(self.mlps.items() & other.mlps.items()),
            self.attentions & other.attentions,
            dict(self.layers.items() & other.layers.items()),
        )


class Call(NamedTuple):
    """What a module was given, and what it returned.

    attended  query, key, value and result of the attention in it, each [1, heads, tokens, size] but for the result, which is
              [1, tokens, heads, size]; None where it has none
    """

    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: Any
    attended: tuple[Tensor, Tensor, Tensor, Tensor] | None


def known_modules(model: nn.Module, run: Callable[[], object]) -> Known:
    """The classes of the model's modules that are ours by another name.

    run  runs the model, which is on the CPU, in fp32, and attends over a cache
    """
    with _observed(model) as calls:
        run()
    norms: dict[type, float] = dict(_agreed(calls, _norm_offset))
    mlps: dict[type, Activation] = dict(_agreed(calls, _gate))
    attentions = dict(_agreed(calls, lambda module, call: _is_attention(module, call, norms) or None))
    known = Known(norms, mlps, frozenset(attentions))
    return replace(known, layers=dict(_agreed(calls, lambda module, call: _layer_parts(module, call, calls, known))))


def linears(module: nn.Module, *names: str) -> list[nn.Linear] | None:
    """The linears of these names; None unless it has all of them, and all have a bias or none has."""
    found = [getattr(module, name, None) for name in names]
    if not all(type(each) is nn.Linear for each in found):
        return None
    have = [each for each in found if isinstance(each, nn.Linear)]
    return have if len({each.bias is None for each in have}) == 1 else None


def first_of(module: nn.Module, choices: tuple[tuple[str, ...], ...]) -> list[nn.Linear] | None:
    """The linears of the first choice that the module has."""
    return next((found for names in choices if (found := linears(module, *names)) is not None), None)


def names_of(module: nn.Module, choices: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """The names of the first choice that the module has."""
    return next(names for names in choices if linears(module, *names) is not None)


def eps_of(norm: nn.Module) -> float | None:
    """What a norm adds to the mean of squares."""
    return next((float(getattr(norm, name)) for name in EPS if isinstance(getattr(norm, name, None), float)), None)


def angles_of(cos: Tensor, sin: Tensor) -> Tensor:
    """The kernels' angles, [tokens, rot_dim] fp32, of transformers' cosines and sines, [1, tokens, rot_dim] each."""
    half = cos.shape[-1] // 2
    return torch.cat([cos[0, :, :half], sin[0, :, :half]], dim=-1).float()


@contextmanager
def _observed(model: nn.Module) -> Iterator[dict[nn.Module, Call]]:
    """What each module was given and returned when it was called last, as long as the block runs."""
    calls: dict[nn.Module, Call] = {}
    attended: dict[nn.Module, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], result: Any) -> None:
        copies = {name: _copied(value) for name, value in options.items()}
        calls[module] = Call(_copied(arguments), copies, _copied(result), attended.get(module))

    def through(attending: Attending) -> Attending:
        def attend(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, options: Mapping[str, Any]
        ) -> Tensor:
            result = attending(module, query, key, value, mask, options)
            attended[module] = query.clone(), key.clone(), value.clone(), result.clone()
            return result

        return attend

    attending = {module: found for module in model.modules() if (found := bound(module)) is not None}
    for module, original in attending.items():
        bind(module, through(original))
    hooks = [module.register_forward_hook(note, with_kwargs=True) for module in model.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
        for module, original in attending.items():
            bind(module, original)


def _copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_copied, value))
    return value.clone() if isinstance(value, Tensor) else value


def _agreed(calls: Mapping[nn.Module, Call], tell: Callable[[nn.Module, Call], T | None]) -> Iterator[tuple[type, T]]:
    """Classes for all of whose modules `tell` says the same, and not None."""
    said: defaultdict[type, set[T | None]] = defaultdict(set)
    for module, call in calls.items():
        said[type(module)].add(tell(module, call))
    for kind, answers in said.items():
        answer = answers.pop()
        if not answers and answer is not None:
            yield kind, answer


def _norm_offset(module: nn.Module, call: Call) -> float | None:
    eps, weight = eps_of(module), getattr(module, "weight", None)
    if eps is None or len(list(module.parameters())) != 1 or not isinstance(weight, Tensor) or len(call.arguments) != 1:
        return None
    x = call.arguments[0]
    if x.shape[-1:] != weight.shape:
        return None
    # What is added to the mean of squares shows where these are small.
    faint = x * 1e-3 / x.abs().max()
    pairs = (x, call.result), (faint, module(faint))
    alike = (offset for offset in (0.0, 1.0) if all(_close(rms_norm(x, weight + offset, eps), y) for x, y in pairs))
    return next(alike, None)


def _gate(module: nn.Module, call: Call) -> Activation | None:
    gate_up, down = first_of(module, GATE_UP), linears(module, "down_proj")
    if gate_up is None or down is None or not _has_only(module, [*gate_up, *down]) or len(call.arguments) != 1:
        return None
    x = call.arguments[0].flatten(0, -2)
    made = torch.cat([linear(x) for linear in gate_up], dim=-1)
    result = call.result.flatten(0, -2)
    return next((gate for gate in GATES if _close(down[0](gated_activation(made, gate)), result)), None)


def _is_attention(module: nn.Module, call: Call, norms: Mapping[type, float]) -> bool:
    qkv, output = first_of(module, QKV), first_of(module, tuple((name,) for name in OUTPUTS))
    if call.attended is None or qkv is None or output is None:
        return False
    head_norms = [norm for name in ("q_norm", "k_norm") if (norm := getattr(module, name, None)) is not None]
    if len(head_norms) == 1 or not all(type(norm) in norms for norm in head_norms):
        return False
    states = call.options.get("hidden_states", call.arguments[0] if call.arguments else None)
    if len(call.arguments) > 1 or states is None or not _has_only(module, [*qkv, *output, *head_norms]):
        return False
    return _attends_alike(call, states[0], qkv, output[0], head_norms, norms)


def _attends_alike(
    call: Call, x: Tensor, qkv: list[nn.Linear], output: nn.Linear, head_norms: list[nn.Module], norms: Mapping[type, float]
) -> bool:
    assert call.attended is not None
    query, key, value, attended = call.attended
    num_tokens, head_dim, kv_heads = query.shape[2], query.shape[3], key.shape[1]
    if value.shape != key.shape or any(norm.weight.shape != (head_dim,) for norm in head_norms):
        return False
    cache = torch.zeros(1, 2, kv_heads, num_tokens, head_dim)
    rotation = call.options.get("position_embeddings")
    tokens = torch.arange(num_tokens)
    weights: dict[str, Any] = {}
    if head_norms:
        q_norm, k_norm = (as_untyped(norm).weight + norms[type(norm)] for norm in head_norms)
        weights = {"q_norm": q_norm, "k_norm": k_norm, "eps": eps_of(head_norms[0])}
    made = torch.cat([linear(x) for linear in qkv], dim=-1)
    angles = None if rotation is None else angles_of(*rotation)
    heads = Heads(query.shape[1], kv_heads, head_dim, **weights)
    if made.shape[1] != heads.width:
        return False
    q = rotary_write(made, StepTokens(tokens, angles, tokens), cache, heads)
    alike = _close(q, query[0].transpose(0, 1)) and _close(cache[0, 0], key[0]) and _close(cache[0, 1], value[0])
    return alike and isinstance(call.result, tuple) and _close(output(attended[0].flatten(1)), call.result[0][0])


def _layer_parts(module: nn.Module, call: Call, calls: Mapping[nn.Module, Call], known: Known) -> LayerParts | None:
    """By what went in and out of its parts: which was given the layer's state, which that one's result, and so on."""
    parts = {name: child for name, child in module.named_children() if child in calls}
    x = _states(call)

    def given(states: Tensor | None, kinds: Collection[type]) -> tuple[str, Tensor] | None:
        """The part of these kinds that was given these states, and what it made of them."""
        for name, part in parts.items():
            if type(part) in kinds and states is not None and _same(_states(calls[part]), states):
                result = calls[part].result
                return name, result[0] if isinstance(result, tuple) else result
        return None

    if (attention_norm := given(x, known.norms)) is None or (attention := given(attention_norm[1], known.attentions)) is None:
        return None
    assert x is not None
    between = x + attention[1]
    if (mlp_norm := given(between, known.norms)) is None or (mlp := given(mlp_norm[1], known.mlps)) is None:
        return None
    if not _same(call.result, between + mlp[1]) or not _has_only(module, list(parts.values())):
        return None
    return LayerParts(attention_norm[0], attention[0], mlp_norm[0], mlp[0])


def _states(call: Call) -> Tensor | None:
    """The states that a module was given; None where it was given something else."""
    states = call.arguments[0] if call.arguments else call.options.get("hidden_states")
    return states if isinstance(states, Tensor) else None


def _same(found: object, expected: Tensor) -> bool:
    return isinstance(found, Tensor) and _close(expected, found)


def _has_only(module: nn.Module, parts: list[Any]) -> bool:
    """Whether the module has no parameters beside those of its parts."""
    return {id(each) for each in module.parameters()} == {id(each) for part in parts for each in part.parameters()}


def _close(ours: Tensor, theirs: object) -> bool:
    if not isinstance(theirs, Tensor) or ours.shape != theirs.shape:
        return False
    return float((ours - theirs).abs().max()) <= _CLOSE * float(theirs.abs().max())
