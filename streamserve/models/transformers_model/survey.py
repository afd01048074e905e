"""What the layers of a model ask of attention, observed in a forward pass without memory.

It costs no arithmetic and sees every layer of the real configuration. What it can't see, how numbers come out, is `check`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamserve.errors import ModelNotSupported
from streamserve.models.transformers_model.attention_function import STEP, bind, scale_of
from streamserve.models.transformers_model.classes import silence

NO_INTERFACE = "does not attend through transformers' attention interface, which is not supported"

_TOKENS = 4


@dataclass(frozen=True)
class AttentionCall:
    """How one layer attends.

    module       its name in the model
    key_size     of a query or key head, value_size of a value head
    passes_step  whether keyword arguments of the model's forward reach it
    """

    module: str
    q_heads: int
    kv_heads: int
    key_size: int
    value_size: int
    scale: float
    window: int | None
    softcap: float | None
    passes_step: bool


@dataclass(frozen=True)
class Survey:
    """vocab_size  of the logits
    calls       of attention, in order
    """

    vocab_size: int
    calls: tuple[AttentionCall, ...]


class _Observer:
    """Attends to nothing, and writes down what it was asked for."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.calls: list[AttentionCall] = []
        self._model = type(model).__name__
        self._names = {module: name for name, module in model.named_modules()}

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, options: Mapping[str, Any]
    ) -> Tensor:
        if mask is not None:
            raise ModelNotSupported(f"{self._model} attends with a mask of its own, which is not supported")
        if query.shape[0] != 1 or not query.shape[2] == key.shape[2] == value.shape[2] == _TOKENS:
            raise ModelNotSupported(f"{self._model} attends to other keys than its tokens', which is not supported")
        call = AttentionCall(
            self._names[module],
            query.shape[1],
            key.shape[1],
            query.shape[3],
            value.shape[3],
            scale_of(query, options),
            options.get("sliding_window") or None,
            options.get("softcap") or None,
            STEP in options,
        )
        self.calls.append(call)
        return value.new_empty(1, _TOKENS, query.shape[1], value.shape[3])


def survey(model: PreTrainedModel) -> Survey:
    """Run the model, which is on the meta device, and return what was observed.

    Raises `ModelNotSupported`, naming what is in the way, when some layer's attention does not pass here, or not once.
    """
    name, observer = type(model).__name__, _Observer(model)
    for module in model.modules():
        bind(module, observer)
    tokens = torch.zeros(1, _TOKENS, dtype=torch.int64, device="meta")
    try:
        with torch.inference_mode(), silence():
            output = model(input_ids=tokens, position_ids=tokens, use_cache=False, **{STEP: object()})
    except ModelNotSupported:
        raise
    except (NotImplementedError, RuntimeError) as error:
        raise ModelNotSupported(f"{name} reads numbers on the host in its forward pass, which is not supported") from error
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ModelNotSupported(f"{name} can't be run by position, without a cache of its own ({error})") from error
    _check_count(name, model.config.num_hidden_layers, observer.calls)
    return Survey(output.logits.shape[-1], tuple(observer.calls))


def _check_count(name: str, num_layers: int, calls: list[AttentionCall]) -> None:
    if not calls:
        raise ModelNotSupported(f"{name} {NO_INTERFACE}")
    module, times = Counter(call.module for call in calls).most_common(1)[0]
    if times > 1:
        raise ModelNotSupported(f"{name} attends {times} times in {module}, which is not supported")
    if len(calls) < num_layers:
        raise ModelNotSupported(f"{name}: {num_layers - len(calls)} of its {num_layers} layers keep state outside of attention")
