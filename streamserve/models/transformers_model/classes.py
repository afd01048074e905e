"""Which class of transformers a config.json names, and an instance of it without memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.transformers_model.attention_function import NAME
from streamserve.models.transformers_model.experts_function import EXPERTS_NAME

ATTENDS = {"full_attention", "sliding_attention"}
"""Kinds of layer that keep nothing of a sequence but keys and values, and see all of it or a window."""


FAILURES = (RuntimeError, AttributeError, TypeError, ValueError, LookupError, ArithmeticError)
"""What modules of others raise when they are not used as they expect."""


def as_untyped(value: object) -> Any:
    """What transformers annotates in part only, for calls of functions without annotations."""
    return value


def find_class(architecture: str) -> type[PreTrainedModel] | None:
    """The decoder class of transformers by this name; None when it has no such class."""
    found = getattr(transformers, architecture, None) if architecture.endswith(("ForCausalLM", "LMHeadModel")) else None
    return found if isinstance(found, type) and issubclass(found, PreTrainedModel) else None


def read_config(model_class: type[PreTrainedModel], config: Mapping[str, Any]) -> PretrainedConfig:
    """The class's configuration. Raises `ConfigError` for values that it does not take."""
    try:
        described: PretrainedConfig = as_untyped(model_class).config_class.from_dict(dict(config))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"config.json: {first_line(error)}") from error
    return described


def refuse_other_state(model_class: type[PreTrainedModel], config: PretrainedConfig) -> None:
    """Raises `ModelNotSupported` for classes and layers that say of themselves that they keep more than keys and values."""
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - ATTENDS)
    if kinds:
        raise ModelNotSupported(f"{model_class.__name__}: layers of type {kinds[0]!r} are not supported")
    if getattr(model_class, "_is_stateful", False):
        raise ModelNotSupported(f"{model_class.__name__} keeps state outside of attention, which is not supported")


def without_memory(model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model with all its tensors on the meta device, attending by our function."""
    with torch.device("meta"), silence():
        return instance(model_class, config, dtype, attention=NAME, experts=EXPERTS_NAME)


def instance(
    model_class: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype, *, attention: str, experts: str
) -> PreTrainedModel:
    """A model of the class.

    attention, experts  names under which transformers finds the functions; the second counts where the class has experts
    """
    choices: dict[str, Any] = {"experts_implementation": experts} if model_class._can_set_experts_implementation() else {}
    made = as_untyped(model_class)._from_config(config, dtype=dtype, attn_implementation=attention, **choices)
    model: PreTrainedModel = made.eval()
    return model


@contextmanager
def silence() -> Iterator[None]:
    """Keep what transformers says about a configuration, in warnings and in its log, from people who chose nothing of it."""
    log = as_untyped(transformers.logging)
    level = log.get_verbosity()
    log.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.set_verbosity(level)


def first_line(error: BaseException) -> str:
    """An error's message, short and without breaks."""
    return " ".join(str(error).split())[:200]
