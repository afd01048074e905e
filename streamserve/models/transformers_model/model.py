"""A model of transformers in our step: its modules compute, our cache keeps keys and values.

It is called like every other model. The tokens of all sequences are a batch of one, each with its own position; the step goes
along as a keyword argument to the layers' attention, or, where a class passes none on, through what they are bound to.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from streamserve.errors import ConfigError
from streamserve.models.architectures.base import CausalModel
from streamserve.models.inputs import StepInputs
from streamserve.models.transformers_model.arch import TransformersArch
from streamserve.models.transformers_model.attention_function import STEP, CurrentStep, PagedLayer, PagedStep, bind
from streamserve.models.transformers_model.conversion import Conversion
from streamserve.models.transformers_model.replacement import replace_modules
from streamserve.models.transformers_model.tensors import allocate, fix_rotations, named_tensors
from streamserve.models.weights.destination import Destination, Stored, copied
from streamserve.models.weights.kv_scales import kv_scales_of
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.source import StoredTensor, WeightSource


class TransformersModel(CausalModel):
    """The modules of one model, uninitialised.

    body  everything up to the final norm
    head  transformers' own way from there to logits
    """

    arch: TransformersArch

    def __init__(self, arch: TransformersArch, place: Placement, max_positions: int) -> None:
        """Raises `ConfigError` when the model is to be divided among ranks."""
        super().__init__()
        if place.world_size > 1:
            raise ConfigError(f"{arch.architecture} runs by transformers' layers, which are not divided among devices")
        self.arch = arch
        whole = arch.without_memory(place.dtype)
        self._conversion = Conversion(whole)
        self._current = CurrentStep()
        self._binds_step = not all(call.passes_step for call in arch.calls)
        scales = [kv_scales_of(f"{call.module}.", place) for call in arch.calls]
        layers = {
            call.module: (call, PagedLayer(layer, self._current, place.dtype, scales[layer]))
            for layer, call in enumerate(arch.calls)
        }
        for name, (_, layer) in layers.items():
            bind(whole.get_submodule(name), layer)
        if arch.replaces:
            replace_modules(whole, place, arch.known, arch.kept, layers)
        allocate(whole, place)
        fix_rotations(whole, max_positions)
        self._tensors = list(named_tensors(whole))
        self.kv_scales = nn.ModuleList(each for each in scales if each is not None)
        self.body: nn.Module = whole.base_model
        setattr(whole, whole.base_model_prefix, _Given())
        self.head = whole

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        step = PagedStep(inputs, kv_caches)
        if self._binds_step:
            self._current.step = step
        output = self.body(
            input_ids=inputs.token_ids[None], position_ids=inputs.positions[None], use_cache=False, **{STEP: step}
        )
        self._current.step = None
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(inputs_embeds=hidden[None], use_cache=False).logits[0]
        return logits

    def states(self, hidden: Tensor) -> Tensor:
        return hidden

    @property
    def state_size(self) -> int:
        size: int = self.arch.config.hidden_size
        return size

    def stored_tensors(self, source: WeightSource) -> Iterator[StoredTensor]:
        return self._conversion.convert(source)

    def destinations(self) -> Iterator[Destination]:
        ours = {id(parameter) for module in self.modules() if isinstance(module, Stored) for parameter in module.parameters()}
        yield from super().destinations()
        for name, tensor in self._tensors:
            if id(tensor) not in ours:
                yield copied(name, tensor)


class _States(BaseModelOutputWithPast):
    """A body's output with nothing else in it, whatever its class has."""

    def __getattr__(self, name: str) -> None:
        return None


class _Given(nn.Module):
    """Stands where the body was, once that is run on its own: returns the states that it is given."""

    @property
    def decoder(self) -> nn.Module:
        """The part that heads of models with an encoder call."""
        return self

    def forward(self, *args: object, inputs_embeds: Tensor, **options: object) -> BaseModelOutputWithPast:
        return _States(last_hidden_state=inputs_embeds)
