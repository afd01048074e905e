"""Proof that a class computes in our step what it computes by itself: a small model of it, both ways, in float32 on a CPU.

What can go wrong in running other people's layers goes wrong without an error: state that is kept outside of attention, a
window that only a mask tells of, positions that are counted instead of read. All of it changes logits. The small model has the
real one's kinds of layers, and costs a fraction of a second.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from streamserve.errors import ModelNotSupported
from streamserve.models.inputs import StepInputs
from streamserve.models.transformers_model.arch import TransformersArch, observe
from streamserve.models.transformers_model.classes import FAILURES, instance, silence, without_memory
from streamserve.models.transformers_model.conversion import Made
from streamserve.models.transformers_model.model import TransformersModel
from streamserve.models.transformers_model.replacement import WeightWanted
from streamserve.models.transformers_model.small_config import VOCABULARY, small_configs
from streamserve.models.transformers_model.tensors import named_tensors
from streamserve.models.weights.placement import Placement

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Of the largest logit; rounding is a hundredth of it."""

_MOST_PARAMETERS = 100_000_000
_BLOCK = 16
_LENGTHS = (11, 7)
_STEPS = (((0, 5), (0, 3)), ((5, 9), (3, 4)), ((9, 10), (4, 6)), ((10, 11), (6, 7)))
"""Which positions of the two sequences each step computes: chunks, chunks beside a decode, and decodes."""

_MOST_KEPT = 4


def checked(arch: TransformersArch, num_layers: int) -> TransformersArch:
    """The shape, with modules replaced by ours if they compute the same.

    num_layers  of the small model: the first ones of the real one, as many as it takes to have every kind
    Raises `ModelNotSupported` when the class's own modules compute something else, or when no small model can be made.
    """
    reference = _reference(arch, num_layers)
    sequences = [torch.randint(VOCABULARY, (length,), generator=_noise(length)) for length in _LENGTHS]
    expected = torch.cat([_alone(arch.architecture, reference, tokens) for tokens in sequences])
    for _ in range(_MOST_KEPT):
        try:
            if _difference(arch, reference, sequences, expected) < TOLERANCE:
                return arch
        except WeightWanted as wanted:
            arch = replace(arch, kept=arch.kept | {wanted.linear})
        else:
            break
    arch = replace(arch, replaces=False)
    if _difference(arch, reference, sequences, expected) < TOLERANCE:
        return arch
    raise ModelNotSupported(
        f"{arch.architecture} computes something else in a batch of sequences than of each alone, which is not supported"
    )


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


def _noise(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.inference_mode()
def _alone(name: str, reference: PreTrainedModel, tokens: Tensor) -> Tensor:
    """Its own logits of one sequence, [tokens, vocab_size]; they depend on more than each token by itself."""
    logits: Tensor
    changed: Tensor
    other = (tokens + 1) % VOCABULARY
    other[-1] = tokens[-1]
    with silence():
        logits, changed = (reference(input_ids=each[None], use_cache=False).logits[0] for each in (tokens, other))
    if (logits[-1] - changed[-1]).abs().max() < 10 * TOLERANCE * logits.abs().max():
        raise ModelNotSupported(f"{name} can't be checked: its logits hardly depend on what came before")
    return logits


def _difference(arch: TransformersArch, reference: PreTrainedModel, sequences: list[Tensor], expected: Tensor) -> float:
    """Of our logits from expected ones, as a share of the largest of these; infinite where ours can't be computed."""
    config: PretrainedConfig = reference.config
    try:
        small = replace(observe(arch.model_class, config, "float32"), replaces=arch.replaces, kept=arch.kept)
        model = TransformersModel(small, Placement(torch.float32, torch.device("cpu")), 4 * _BLOCK)
        weights = dict(named_tensors(reference))
        with torch.inference_mode(), silence():
            for destination in model.destinations():
                destination.fill(Made(destination.name, weights[destination.name], 0))
            model.finish()
            found = _paged(model.eval(), sequences)
    except WeightWanted:
        raise
    except FAILURES as error:
        logger.debug("%s in a step: %r", arch.architecture, error)
        return float("inf")
    difference = float((found - expected).abs().max() / expected.abs().max())
    return difference if difference == difference else float("inf")


def _paged(model: TransformersModel, sequences: list[Tensor]) -> Tensor:
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


def _inputs(order: list[int], spans: tuple[tuple[int, int], ...], sequences: list[Tensor], num_layers: int) -> StepInputs:
    """A step of these positions of the sequences, each of which has one block of its own."""
    positions = [torch.arange(*spans[sequence]) for sequence in order]
    counts = torch.tensor([0] + [len(each) for each in positions], dtype=torch.int32)
    slots = torch.cat([sequence * _BLOCK + each for sequence, each in zip(order, positions, strict=True)])
    lengths = [spans[sequence][1] for sequence in order]
    return StepInputs(
        token_ids=torch.cat([sequences[sequence][slice(*spans[sequence])] for sequence in order]),
        positions=torch.cat(positions),
        slot_mapping=[slots] * num_layers,
        block_tables=[torch.tensor(order, dtype=torch.int32)[:, None]] * num_layers,
        seq_lens=torch.tensor(lengths, dtype=torch.int32),
        query_start=counts.cumsum(0, dtype=torch.int32),
        num_decodes=sum(end - begin == 1 for begin, end in (spans[sequence] for sequence in order)),
        max_seq_len=max(lengths),
    )
