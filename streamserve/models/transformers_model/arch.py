"""The shape of a model of transformers, read off its modules."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.arch import Arch, PagedKv
from streamserve.models.transformers_model.attention_function import NAME
from streamserve.models.transformers_model.classes import FAILURES, first_line, without_memory
from streamserve.models.transformers_model.known import Known
from streamserve.models.transformers_model.survey import NO_INTERFACE, AttentionCall, survey
from streamserve.models.transformers_model.tensors import fix_rotations


@dataclass(frozen=True, kw_only=True)
class TransformersArch(Arch):
    """What our step needs to know of the model, and what it takes to make it.

    calls           of attention, in order: each keeps keys and values of its own
    replaces        whether linears, and modules of classes in `known`, are replaced by ours
    kept            names of linears, in the modules that have them, that stay
    """

    model_impl = "transformers"
    calls: tuple[AttentionCall, ...]
    model_class: type[PreTrainedModel] = field(repr=False)
    config: PretrainedConfig = field(repr=False)
    replaces: bool = False
    known: Known = field(default=Known(), repr=False)
    kept: frozenset[str] = frozenset()

    @property
    def layer_states(self) -> tuple[PagedKv, ...]:
        return tuple(PagedKv(call.kv_heads, max(call.key_size, call.value_size), call.window) for call in self.calls)

    def without_memory(self, dtype: torch.dtype) -> PreTrainedModel:
        """The model on the meta device."""
        config = deepcopy(self.config)
        config.tie_word_embeddings = self.tied_embeddings
        return without_memory(self.model_class, config, dtype)


def observe(model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: str) -> TransformersArch:
    """The shape of the model that this class makes of this configuration.

    Raises `ModelNotSupported`, naming what is in the way, when it can't run in our step, and `ConfigError` when the
    configuration lacks what every model needs.
    """
    try:
        model = without_memory(model_class, deepcopy(config), torch.float32)
    except FAILURES as error:
        if error.args == (NAME,):
            # Looked up among attentions of its own.
            raise ModelNotSupported(f"{model_class.__name__} {NO_INTERFACE}") from error
        raise ModelNotSupported(
            f"{model_class.__name__} can't be made with an attention of ours ({first_line(error)})"
        ) from error
    reach = _reach(config)
    fix_rotations(model, reach)
    seen = survey(model)
    return TransformersArch(
        architecture=model_class.__name__,
        dtype=dtype,
        vocab_size=seen.vocab_size,
        max_model_len=reach,
        tied_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
        calls=seen.calls,
        model_class=model_class,
        config=config,
    )


def _reach(config: PretrainedConfig) -> int:
    """Positions of a sequence: max_position_embeddings, or what RoPE scaling stretches the context trained on to."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int):
        raise ConfigError("config.json: max_position_embeddings is missing")
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    ropes = [rope for rope in parameters.values() if isinstance(rope, dict)] or [parameters]
    stretched = [
        int(rope["factor"] * (rope.get("original_max_position_embeddings") or limit))
        for rope in ropes
        if rope.get("rope_type") in ("linear", "dynamic", "yarn") and rope.get("factor")
    ]
    return max(limit, *stretched) if stretched else limit
