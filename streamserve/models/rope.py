"""Rotary position embeddings: which frequencies a model rotates by, and the table of their cosines and sines.

Built once when a model is loaded; a step only looks rows up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamserve.checkpoint.config_values import need, number
from streamserve.errors import ConfigError, ModelNotSupported

DEFAULT_THETA = 10000.0
KINDS = ("default", "linear", "dynamic", "yarn", "llama3")


@dataclass(frozen=True)
class Rope:
    """One way to rotate queries and keys; field names are those of transformers' `rope_parameters`.

    kind                              one of KINDS
    theta                             the longest wavelength is about 2 pi theta
    rot_dim                           how many dimensions of a head are rotated
    factor                            how much longer the context became than the one trained on
    original_max_position_embeddings  the context trained on
    max_position_embeddings           the model's own limit, to which "dynamic" compares a longer context
    attention_factor                  of cosines and sines ("yarn"); None derives it from `factor`
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

    def table(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Cosines, then sines, of every position: [length, rot_dim] fp32.

        length  positions served; "dynamic" chooses its frequencies for a context this long, so that a token's rotation depends
                on nothing but its position
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
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _mscale(self.factor, self.mscale) / _mscale(self.factor, self.mscale_all_dim)
        return _mscale(self.factor, 1.0)


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
    parameters = _parameters(config, layer_type)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in KINDS:
        raise ModelNotSupported(f"RoPE type {kind!r} is not supported; supported: {', '.join(KINDS)}")
    limit = config.get("max_position_embeddings") or 0
    if kind != "default" and "factor" not in parameters:
        raise ConfigError(f"config.json: RoPE type {kind!r} needs a 'factor'")
    values = {**config, **parameters}
    share = 1.0 if values.get("partial_rotary_factor") is None else number(values, "partial_rotary_factor", 1.0)
    optional = ("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
    return Rope(
        kind=kind,
        theta=float(number(values, "rope_theta", DEFAULT_THETA)),
        rot_dim=int(head_dim * share),
        factor=float(number(parameters, "factor", 1.0)) if kind != "default" else 1.0,
        original_max_position_embeddings=parameters.get("original_max_position_embeddings") or limit,
        max_position_embeddings=limit,
        truncate=parameters.get("truncate", True),
        **{name: number(parameters, name, 0.0) for name in optional if parameters.get(name) is not None},
    )


def extended_length(config: dict[str, Any], rope: Rope) -> int:
    """Positions a model can serve: max_position_embeddings, or what its RoPE scaling stretches that to.

    Raises `ConfigError` when max_position_embeddings is missing.
    Llama 3's configurations state the stretched length already; so does a YaRN one whose limit exceeds the context trained on.
    """
    limit = int(need(config, "max_position_embeddings"))
    if rope.kind in ("linear", "dynamic", "yarn"):
        return max(limit, int(rope.original_max_position_embeddings * rope.factor))
    return limit


def _parameters(config: dict[str, Any], layer_type: str | None) -> dict[str, Any]:
    """What is given under the new name and under the old one, which wins where both are given, as in transformers."""
    new, old = (config.get(name) or {} for name in ("rope_parameters", "rope_scaling"))
    if isinstance(new, dict) and layer_type in new:
        new = new[layer_type]
    for name, value in (("rope_parameters", new), ("rope_scaling", old)):
        if not isinstance(value, dict):
            raise ConfigError(f"config.json: {name} must be an object")
    # People add `rope_scaling` to a configuration that states the base under the new name: it is not another base.
    base = {name: new[name] for name in ("rope_theta", "partial_rotary_factor") if name in new}
    return base | old if old else new
