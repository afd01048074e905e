"""Rotary position embeddings: which frequencies a model rotates by, and the table of their cosines and sines.

Built once when a model is loaded; a step only looks rows up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamserve.checkpoint.config_values import need, number, positive
from streamserve.errors import ConfigError, ModelNotSupported

DEFAULT_THETA = 10000.0
KINDS = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
ALIASES = {"su": "longrope", "mrope": "default"}
"""Older words, and a rotation by three positions, which are equal for every token of a text."""


@dataclass(frozen=True)
class Rope:
    """One way to rotate queries and keys; field names are those of transformers' `rope_parameters`.

    kind                              one of KINDS
    theta                             the longest wavelength is about 2 pi theta
    rot_dim                           how many dimensions of a head are rotated
    factor                            how much longer the context became than the one trained on
    original_max_position_embeddings  the context trained on
    max_position_embeddings           the model's own limit, to which "dynamic" compares a longer context
    attention_factor                  of cosines and sines ("yarn", "longrope"); None derives it from `factor`
    interleaved                       neighbouring dimensions rotate together, instead of dimensions half of rot_dim apart
    short_factor, long_factor         divisors of the frequencies of each pair ("longrope")
    """

    kind: str
    theta: float
    rot_dim: int
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    interleaved: bool = False
    short_factor: tuple[float, ...] = ()
    long_factor: tuple[float, ...] = ()

    def table(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Cosines, then sines, of every position: [length, rot_dim] fp32.

        length  positions served; "dynamic" and "longrope" choose their frequencies for a context this long, so that a token's
                rotation depends on nothing but its position
        """
        positions = torch.arange(length, dtype=torch.float32, device=device)
        angles = torch.outer(positions, self._frequencies(length).to(device))
        return torch.cat([angles.cos(), angles.sin()], dim=-1) * self._attention_factor()

    def _frequencies(self, length: int) -> Tensor:
        """Radians per position of each pair of dimensions, fastest first: [rot_dim / 2] fp32."""
        if self.kind == "dynamic":
            return _inverse_powers(self._dynamic_theta(length), self.rot_dim)
        frequencies = _inverse_powers(self.theta, self.rot_dim)
        if self.kind == "linear":
            return frequencies / self.factor
        if self.kind == "llama3":
            return self._llama3(frequencies)
        if self.kind == "yarn":
            return self._yarn(frequencies)
        if self.kind == "longrope":
            is_long = length > self.original_max_position_embeddings
            return frequencies / torch.tensor(self.long_factor if is_long else self.short_factor)
        return frequencies

    def _dynamic_theta(self, length: int) -> float:
        """NTK-aware scaling by context length (bloc97 and emozilla, 2023); no change within the model's own limit."""
        limit = self.max_position_embeddings
        stretch = self.factor * max(length, limit) / limit - (self.factor - 1)
        return float(self.theta * stretch ** (self.rot_dim / (self.rot_dim - 2)))

    def _llama3(self, frequencies: Tensor) -> Tensor:
        """Llama 3.1: slow frequencies divided by `factor`, fast ones kept, a ramp between them."""
        original = self.original_max_position_embeddings
        turns = original * frequencies / (2 * math.pi)
        ramp = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        ramp = ramp.clamp(0.0, 1.0)
        return (1 - ramp) * frequencies / self.factor + ramp * frequencies

    def _yarn(self, frequencies: Tensor) -> Tensor:
        """YaRN (Peng et al., 2023): what turns more than beta_fast times is kept, less than beta_slow is interpolated."""
        low, high = self._turning_dim(self.beta_fast), self._turning_dim(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rot_dim - 1)
        dims = torch.arange(self.rot_dim // 2, dtype=torch.float32)
        kept = 1 - ((dims - low) / max(high - low, 0.001)).clamp(0.0, 1.0)
        return frequencies / self.factor * (1 - kept) + frequencies * kept

    def _turning_dim(self, turns: float) -> float:
        """The (fractional) pair of dimensions that turns `turns` times over the context trained on."""
        original = self.original_max_position_embeddings
        return self.rot_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(self.theta))

    def _attention_factor(self) -> float:
        if self.kind not in ("yarn", "longrope"):
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.kind == "longrope":
            return _longrope_factor(self.factor, self.original_max_position_embeddings)
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)


def _longrope_factor(factor: float, original: int) -> float:
    """LongRoPE (Ding et al., 2024, https://arxiv.org/abs/2402.13753)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))


class RopeTables(nn.Module):
    """Cosines and sines for every layer; layers with the same rotation share a table."""

    def __init__(self, ropes: tuple[Rope | None, ...], length: int, device: torch.device) -> None:
        super().__init__()
        # Without memory torch would load its compiler, some 800 modules, for arithmetic: that is done where there is some.
        where = torch.device("cpu") if device.type == "meta" else device
        self._by_rope = {rope: rope.table(length, where).to(device) for rope in set(ropes) if rope is not None}
        self.by_layer: list[Tensor | None] = [self._by_rope[rope] if rope is not None else None for rope in ropes]


def _inverse_powers(theta: float, rot_dim: int) -> Tensor:
    return 1.0 / theta ** (torch.arange(0, rot_dim, 2, dtype=torch.float32) / rot_dim)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def read_rope(config: dict[str, Any], head_dim: int, layer_type: str | None = None) -> Rope:
    """The rotation that a config.json asks for, in its new (`rope_parameters`) or old (`rope_theta`, `rope_scaling`) words.

    layer_type  "full_attention" or "sliding_attention" where a model has one rotation for each
    Raises `ModelNotSupported` for other kinds, `ConfigError` when a value is missing.
    """
    parameters = rope_parameters(config, layer_type)
    values = {**config, **parameters}
    limit = 0 if config.get("max_position_embeddings") is None else number(config, "max_position_embeddings", 0)
    share = 1.0 if values.get("partial_rotary_factor") is None else number(values, "partial_rotary_factor", 1.0)
    original = _length(parameters) or limit
    kind, theta = _kind(parameters), float(number(values, "rope_theta", DEFAULT_THETA))
    rot_dim, extra = int(head_dim * share), dict[str, Any]()
    if kind == "dynamic" and parameters.get("alpha"):
        # HunYuan's: the base is stretched for good, whatever the context.
        kind, theta = "default", theta * float(parameters["alpha"]) ** (rot_dim / (rot_dim - 2))
    if kind == "longrope":
        original = _length(config) or original
        parameters = {"factor": limit / original} | parameters
        extra = {name: _divisors(parameters, name, rot_dim // 2) for name in ("short_factor", "long_factor")}
    if kind != "default" and "factor" not in parameters:
        raise ConfigError(f"config.json: RoPE type {kind!r} needs a 'factor'")
    optional = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
    return Rope(
        kind=kind,
        theta=theta,
        rot_dim=rot_dim,
        factor=float(number(parameters, "factor", 1.0)) if kind != "default" else 1.0,
        original_max_position_embeddings=original,
        max_position_embeddings=limit,
        truncate=parameters.get("truncate", True),
        **extra,
        **{name: number(parameters, name, 0.0) for name in optional if parameters.get(name) is not None},
    )


def _kind(parameters: dict[str, Any]) -> str:
    """One of KINDS. Raises `ModelNotSupported`."""
    name = parameters.get("rope_type", parameters.get("type", "default"))
    kind = ALIASES.get(name, name) if isinstance(name, str) else None
    if kind not in KINDS:
        raise ModelNotSupported(f"RoPE type {name!r} is not supported; supported: {', '.join(KINDS)}")
    return str(kind)


def _length(values: dict[str, Any]) -> int | None:
    """Tokens of the context trained on, where it is stated."""
    if values.get("original_max_position_embeddings") is None:
        return None
    return int(positive(values, "original_max_position_embeddings"))


def _divisors(parameters: dict[str, Any], name: str, pairs: int) -> tuple[float, ...]:
    values = parameters.get(name)
    is_list = isinstance(values, list) and all(isinstance(each, int | float) for each in values)
    if not is_list or len(values or ()) != pairs:
        raise ConfigError(f"config.json: RoPE type 'longrope' needs a {name} of {pairs} numbers")
    return tuple(float(each) for each in values or ())


def extended_length(config: dict[str, Any], rope: Rope) -> int:
    """Positions a model can serve: max_position_embeddings, or what its RoPE scaling stretches that to.

    Raises `ConfigError` when max_position_embeddings is missing.
    Llama 3's configurations state the stretched length already; so does a YaRN one whose limit exceeds the context trained on.
    """
    limit = int(need(config, "max_position_embeddings"))
    if rope.kind in ("linear", "dynamic", "yarn"):
        return max(limit, int(rope.original_max_position_embeddings * rope.factor))
    return limit


def rope_parameters(config: dict[str, Any], layer_type: str | None = None) -> dict[str, Any]:
    """What is given under the new name and under the old one, which wins where both are given, as in transformers.

    Raises `ConfigError` where one of them is no object.
    """
    new, old = (config.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
    if isinstance(new, dict) and layer_type in new:
        new = new[layer_type]
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(value, dict):
            raise ConfigError(f"config.json: {name} must be an object")
    # People add `rope_scaling` to a configuration that states the base under the new name: it is not another base.
    base = {name: new[name] for name in ("rope_theta", "partial_rotary_factor") if name in new}
    return base | old if old else new
