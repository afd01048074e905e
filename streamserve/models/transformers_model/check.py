"""Proof that a class computes in our step what it computes by itself: a small model of it, both ways, in float32 on a CPU.

What can go wrong in running other people's layers goes wrong without an error: state that is kept outside of attention, a
window that only a mask tells of, positions that are counted instead of read. All of it changes logits. The small model has the
real one's kinds of layers, and costs a fraction of a second.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from streamserve.errors import ModelNotSupported
from streamserve.models.inputs import StepInputs
from streamserve.models.transformers_model.arch import TransformersArch, observe
from streamserve.models.transformers_model.classes import FAILURES, first_line, instance, silence, without_memory
from streamserve.models.transformers_model.conversion import Made
from streamserve.models.transformers_model.known import known_modules
from streamserve.models.transformers_model.model import TransformersModel
from streamserve.models.transformers_model.replacement import BatchLayer, WeightWanted
from streamserve.models.transformers_model.small_config import VOCABULARY, small_configs
from streamserve.models.transformers_model.tensors import fix_rotations, named_tensors
from streamserve.models.weights.placement import Placement

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Of the largest logit; rounding is a hundredth of it."""

_MOST_PARAMETERS = 100_000_000
_BLOCK = 16
_LENGTHS = (11, 7)
_LOUDER = 30.0
_STEPS = (((0, 5), (0, 3)), ((5, 9), (3, 4)), ((9, 10), (4, 6)), ((10, 11), (6, 7)))
"""Which tokens of the two sequences each step computes: chunks, chunks beside a decode, and decodes."""

_MOST_KEPT = 4
MOST_LAYERS = 16
"""Of a small model."""


class _Sequence(NamedTuple):
    """tokens and positions, [tokens] each"""

    tokens: Tensor
    positions: Tensor


def checked(arch: TransformersArch, num_layers: int) -> TransformersArch:
    """The shape, with as many modules replaced by ours as compute the same.

    num_layers  of the small model: the first ones of the real one, as many as it takes to have every kind
    Raises `ModelNotSupported` when the class computes something else in a step, or when no small model can be made.
    """
    layers = min(num_layers, MOST_LAYERS)
    reference = _reference(arch, layers)
    fix_rotations(reference, arch.max_model_len)
    # One sequence at the first positions, one at the last: what depends on the position may begin late.
    starts = (max(0, arch.max_model_len - max(_LENGTHS)), 0)
    noise = _noise(1)
    sequences = [
        _Sequence(torch.randint(VOCABULARY, (length,), generator=noise), torch.arange(start, start + length))
        for start, length in zip(starts, _LENGTHS, strict=True)
    ]
    expected = torch.cat([_alone(arch.architecture, reference, sequence) for sequence in sequences])
    try:
        model = _small(arch, reference)
        agrees = _agrees(_paged(model, sequences), expected)
    except FAILURES as error:
        raise ModelNotSupported(f"{arch.architecture} can't be run in a batch of sequences ({first_line(error)})") from error
    if not agrees:
        raise ModelNotSupported(
            f"{arch.architecture} computes something else in a batch of sequences than of each alone, which is not supported"
        )
    if num_layers > layers:
        # Some kinds of layer have not been seen: what they are made of may be something else, by the same names.
        return arch
    known = known_modules(model, lambda: _paged(model, sequences))
    # What is cut off above some size shows where everything is large.
    _amplify(model)
    known &= known_modules(model, lambda: _paged(model, sequences))
    return _with_replacements(replace(arch, replaces=True, known=known), reference, sequences, expected) or arch


def _with_replacements(
    arch: TransformersArch, reference: PreTrainedModel, sequences: list[_Sequence], expected: Tensor
) -> TransformersArch | None:
    """The shape, without the linears whose weights others want; None where replacing changes what is computed."""
    for _ in range(_MOST_KEPT):
        try:
            model = _small(arch, reference)
            _spoil_what_was_used(model)
            return arch if _agrees(_paged(model, sequences), expected) else None
        except WeightWanted as wanted:
            arch = replace(arch, kept=arch.kept | {wanted.linear})
        except FAILURES as error:
            logger.info("%s runs without modules of ours: %s", arch.architecture, first_line(error))
            return None
    return None


def _reference(arch: TransformersArch, num_layers: int) -> PreTrainedModel:
    """A small model with random weights, attending as transformers does."""
    failure: Exception | None = None
    with silence():
        for config in small_configs(arch.config, num_layers):
            try:
                shape = without_memory(arch.model_class, deepcopy(config), torch.float32)
                if sum(parameter.numel() for parameter in shape.parameters()) > _MOST_PARAMETERS:
                    continue
                model = instance(arch.model_class, config, torch.float32, attention="eager", experts="eager")
                model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
            except FAILURES as error:
                failure = error
                continue
            _randomize(model)
            return model
    raise ModelNotSupported(f"{arch.architecture} can't be checked: no small model of it could be made") from failure


@torch.no_grad()
def _randomize(model: PreTrainedModel) -> None:
    """So that everything counts: matrices keep the size of what they multiply, and no norm and no bias is the same all over."""
    noise = _noise(0)
    for name, tensor in named_tensors(model):
        if not tensor.is_floating_point():
            continue
        random = torch.randn(tensor.shape, generator=noise)
        if tensor.dim() > 1:
            tensor.copy_(random * (1.5 / tensor.shape[-1] ** 0.5 if "emb" not in name else 0.1))
        else:
            tensor.copy_(random * 0.2 + float("norm" in name and name.endswith("weight")))


@torch.inference_mode()
def _amplify(model: TransformersModel) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(_LOUDER)


def _noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def _alone(name: str, reference: PreTrainedModel, sequence: _Sequence) -> Tensor:
    """Its own logits of one sequence, [tokens, vocab_size]; they depend on more than each token by itself."""
    logits: Tensor
    changed: Tensor
    tokens, positions = sequence
    other = (tokens + 1) % VOCABULARY
    other[-1] = tokens[-1]
    with silence():
        logits, changed = (
            reference(input_ids=each[None], position_ids=positions[None], use_cache=False).logits[0] for each in (tokens, other)
        )
    if (logits[-1] - changed[-1]).abs().max() < 10 * TOLERANCE * logits.abs().max():
        raise ModelNotSupported(f"{name} can't be checked: its logits hardly depend on what came before")
    return logits


def _spoil_what_was_used(model: TransformersModel) -> None:
    """Have our layers leave nothing of the states they were given, which kernels may write to: who reads them again shows."""

    def spoil(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any], result: Tensor) -> None:
        states = arguments[0] if arguments else options["hidden_states"]
        states.fill_(float("nan"))

    for module in model.modules():
        if isinstance(module, BatchLayer):
            module.register_forward_hook(spoil, with_kwargs=True)


@torch.inference_mode()
def _small(arch: TransformersArch, reference: PreTrainedModel) -> TransformersModel:
    """The small model in our step."""
    seen = observe(arch.model_class, reference.config, "float32")
    small = replace(seen, replaces=arch.replaces, known=arch.known, kept=arch.kept)
    model = TransformersModel(small, Placement(torch.float32, torch.device("cpu")), small.max_model_len)
    weights = dict(named_tensors(reference))
    for destination in model.destinations():
        destination.fill(Made(destination.name, weights[destination.name], 0))
    model.finish()
    return model.eval()


def _agrees(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= TOLERANCE * expected.abs().max())


@torch.inference_mode()
def _paged(model: TransformersModel, sequences: list[_Sequence]) -> Tensor:
    """Our logits of all sequences, one below the other, from steps that take some of their tokens each."""
    caches = [torch.zeros(len(sequences), 2, state.kv_heads, _BLOCK, state.head_dim) for state in model.arch.layer_states]
    parts: list[list[Tensor]] = [[] for _ in sequences]
    for spans in _STEPS:
        order = sorted(range(len(spans)), key=lambda sequence: spans[sequence][1] - spans[sequence][0])
        inputs = _inputs(order, spans, sequences, len(caches))
        logits = model.logits(model(inputs, caches))
        for sequence, part in zip(order, torch.split(logits, [spans[each][1] - spans[each][0] for each in order]), strict=True):
            parts[sequence].append(part)
    return torch.cat([part for of_sequence in parts for part in of_sequence])


def _inputs(order: list[int], spans: tuple[tuple[int, int], ...], sequences: list[_Sequence], num_layers: int) -> StepInputs:
    """A step of these tokens of the sequences, each of which has one block of its own."""
    places = [torch.arange(*spans[sequence]) for sequence in order]
    counts = torch.tensor([0] + [len(each) for each in places], dtype=torch.int32)
    slots = torch.cat([sequence * _BLOCK + each for sequence, each in zip(order, places, strict=True)])
    lengths = [spans[sequence][1] for sequence in order]
    return StepInputs(
        token_ids=torch.cat([sequences[sequence].tokens[slice(*spans[sequence])] for sequence in order]),
        positions=torch.cat([sequences[sequence].positions[slice(*spans[sequence])] for sequence in order]),
        slot_mapping=[slots] * num_layers,
        block_tables=[torch.tensor(order, dtype=torch.int32)[:, None]] * num_layers,
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        query_start=counts.cumsum(0, dtype=torch.int32),
        num_decodes=sum(end - begin == 1 for begin, end in (spans[sequence] for sequence in order)),
        max_seq_len=max(lengths),
    )
