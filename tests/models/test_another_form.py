"""What one more form of weights takes, with one in miniature: the form and its line in the table, and no change in a layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamserve.errors import ModelNotSupported
from streamserve.models.aot.shape import can_compile
from streamserve.models.weights.destination import Destination, copied
from streamserve.models.weights.forms import choose
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve_kernels import linear
from tests.models.families import FAMILIES, load, reference_model
from tests.models.paged import PagedRun
from tests.models.test_families import prompt_of
from tests.models.test_shards import load_rank

PROMPT = prompt_of(20)


class EightBitFloats(Form):
    """weight [out, in] float8_e4m3fn, scale [out, 1]."""

    methods = frozenset({"fp8"})

    def __init__(self, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self._spec = spec
        self.weight = place.empty(self.out_features, self.in_features, dtype=torch.float8_e4m3fn)
        self.scale = place.empty(self.out_features, 1)

    @classmethod
    def takes(cls, spec: WeightSpec, place: Placement) -> bool:
        is_one = place.storage.quantization_config.get("quant_method") in cls.methods
        return is_one and spec.table is None and spec.parts[0].name != "lm_head"

    def destinations(self) -> Iterator[Destination]:
        for part, rows in self._spec.split(self.weight):
            yield copied(f"{part.name}.weight", rows, part.region)
        for part, scales in self._spec.split(self.scale):
            yield copied(f"{part.name}.weight_scale", scales, part.region.rows(1))

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self.weight.to(x.dtype) * self.scale, bias)


@pytest.fixture(params=["llama", "phi3", "gemma3"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of 8-bit floats, and one of the numbers that those stand for."""
    quantized, expanded = tmp_path / "quantized", tmp_path / "expanded"
    reference_model(*FAMILIES[request.param]).save_pretrained(expanded)
    reference_model(*FAMILIES[request.param]).save_pretrained(quantized)
    tensors, numbers = load_file(quantized / "model.safetensors"), load_file(expanded / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        scale = tensors[name].abs().amax(1, keepdim=True) / 448
        tensors[name], tensors[f"{name}_scale"] = (tensors[name] / scale).to(torch.float8_e4m3fn), scale
        numbers[name] = tensors[name].float() * scale
    save_file(tensors, quantized / "model.safetensors")
    save_file(numbers, expanded / "model.safetensors")
    config = json.loads((quantized / "config.json").read_text()) | {"quantization_config": {"quant_method": "fp8"}}
    (quantized / "config.json").write_text(json.dumps(config))
    return quantized, expanded


def test_a_method_that_no_form_is_made_for_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelNotSupported, match="quantization method 'fp8'"):
        load(folders[0])


def test_a_form_in_the_table_is_all_that_a_checkpoint_in_it_takes(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized, expanded = folders
    expected = PagedRun(load(expanded)).step({"a": PROMPT})["a"]
    monkeypatch.setattr(choose, "FORMS", (EightBitFloats, *choose.FORMS))
    model = load(quantized)
    assert sum(isinstance(linear.form, EightBitFloats) for linear in model.linears()) == 4 * model.arch.num_layers
    torch.testing.assert_close(PagedRun(model).step({"a": PROMPT})["a"], expected, atol=1e-4, rtol=0)
    assert not can_compile(model), "there is no traced form of it"

    hidden = torch.randn(3, model.arch.hidden_size)
    mlps = [load_rank(quantized, rank, 2).layers[0].mlp for rank in range(2)]
    with torch.inference_mode():
        total = mlps[0](hidden) + mlps[1](hidden)
        torch.testing.assert_close(total, model.layers[0].mlp(hidden), atol=1e-4, rtol=1e-4)
