"""A checkpoint's tensors under the names, and in the shapes, of transformers' modules.

Older checkpoints have other names, and most store each expert apart; transformers knows how they become its own. One target is
made at a time, so that nothing but its parts is in memory beside the model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from streamserve.errors import ConfigError
from streamserve.models.transformers_model.classes import FAILURES, as_untyped, first_line
from streamserve.models.transformers_model.tensors import named_tensors
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.source import StoredTensor, WeightSource


class Conversion:
    """How checkpoints of one class become what its modules hold."""

    def __init__(self, model: PreTrainedModel) -> None:
        """model  without memory, and as transformers made it"""
        transforms = get_model_conversion_mapping(model)
        self._model = model
        self._renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
        self._converters = [each for each in transforms if isinstance(each, WeightConverter)]
        self._by_pattern = {pattern: each for each in self._converters for pattern in each.source_patterns}
        self._targets = model.state_dict()
        self._tied = self._targets.keys() - dict(named_tensors(model)).keys()
        self._ignored = [re.compile(pattern) for pattern in model._keys_to_ignore_on_load_unexpected or ()]

    def convert(self, source: WeightSource) -> Iterator[StoredTensor]:
        """The source's tensors, each as what it becomes; those that are joined come where the last of them would.

        Raises `ConfigError`, naming the tensor, when some don't fit together.
        """
        parts: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for name in source.names:
            target, pattern = self._target(name)
            if pattern is not None:
                parts[target].append((name, pattern))
        waiting = {target: len(members) for target, members in parts.items()}
        for stored in source.tensors():
            target, pattern = self._target(stored.name)
            if pattern is not None:
                waiting[target] -= 1
                if not waiting[target]:
                    yield from self._joined(target, parts.pop(target), source)
            elif target not in self._tied and not self._is_ignored(target):
                yield Renamed(target, stored)

    def _target(self, name: str) -> tuple[str, str | None]:
        """What a stored tensor is part of, or is, and the pattern of the converter that takes it."""
        prefix = self._model.base_model_prefix
        target, pattern = rename_source_key(name, self._renamings, self._converters, prefix, self._targets)
        if target not in self._targets and name in self._targets:
            return name, None
        return target, pattern if target in self._targets else None

    def _is_ignored(self, target: str) -> bool:
        return target not in self._targets and any(each.search(target) for each in self._ignored)

    def _joined(self, target: str, members: list[tuple[str, str]], source: WeightSource) -> Iterator[StoredTensor]:
        converter = deepcopy(self._by_pattern[members[0][1]])
        num_bytes = 0
        for name, pattern in sorted(members, key=lambda member: dot_natural_key(member[0])):
            stored = source.tensor(name)
            num_bytes += stored.num_bytes
            as_untyped(converter).add_tensor(target, name, pattern, partial(_values, stored))
        try:
            made = converter.convert(target, model=self._model, config=self._model.config)
        except FAILURES as error:
            others = f"{members[0][0]!r} and {len(members) - 1} others"
            raise ConfigError(f"the checkpoint's {others} don't make {target!r} ({first_line(error)})") from error
        for index, (name, values) in enumerate(made.items()):
            values = values[0] if isinstance(values, list) else values
            yield Made(name, values, 0 if index else num_bytes)


class Renamed(StoredTensor):
    """A tensor as it is stored, by another name."""

    def __init__(self, name: str, stored: StoredTensor) -> None:
        self.name, self.shape, self.num_bytes = name, stored.shape, stored.num_bytes
        self._stored = stored

    @property
    def values(self) -> Tensor:
        return self._stored.values

    @property
    def integers(self) -> GroupedIntegers:
        return self._stored.integers


class Made(StoredTensor):
    """A tensor made of stored ones."""

    def __init__(self, name: str, values: Tensor, num_bytes: int) -> None:
        """num_bytes  of what it was made of"""
        self.name, self.shape, self.num_bytes = name, tuple(values.shape), num_bytes
        self._values = values

    @property
    def values(self) -> Tensor:
        return self._values

    @property
    def integers(self) -> GroupedIntegers:
        raise LookupError(f"{self.name} is not stored as grouped integers")


def _values(stored: StoredTensor) -> Tensor:
    return stored.values
