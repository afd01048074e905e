"""What one more scheme takes, with one in miniature: a file with it and its form, a line in the table, no change in a layer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamserve.errors import ModelNotSupported
from streamserve.models.aot.shape import can_compile
from streamserve.models.weights.destination import Destination, copied
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme, Schemes
from streamserve.models.weights.schemes.table import METHODS
from streamserve_kernels import linear
from tests.models.families import FAMILIES, load, prompt_of, reference_model
from tests.models.paged import PagedRun
from tests.models.ranks import load_rank

PROMPT = prompt_of(20)


@dataclass(frozen=True)
class Shifted(Scheme):
    """Numbers that are stored greater than they are, by an amount for each row; multiplied as they should be."""

    def form(self, spec: WeightSpec, place: Placement) -> Form:
        return ShiftedForm(spec, place)


class ShiftedForm(Form):
    """weight [out, in], shift [out, 1]."""

    def __init__(self, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self._spec = spec
        self.weight = place.empty(self.out_features, self.in_features)
        self.shift = place.empty(self.out_features, 1)

    def destinations(self) -> Iterator[Destination]:
        for part, rows in self._spec.split(self.weight):
            yield copied(f"{part.name}.weight", rows, part.region)
        for part, shifts in self._spec.split(self.shift):
            yield copied(f"{part.name}.weight_shift", shifts, part.region.rows(1))

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self.weight - self.shift, bias)


def read_shifted(config: Mapping[str, Any]) -> Schemes:
    return lambda name: Shifted() if name.endswith("_proj") else PLAIN


@pytest.fixture(params=["llama", "phi3", "gemma3"])
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of shifted numbers, and one of those that they stand for."""
    quantized, expanded = tmp_path / "quantized", tmp_path / "expanded"
    reference_model(*FAMILIES[request.param]).save_pretrained(expanded)
    reference_model(*FAMILIES[request.param]).save_pretrained(quantized)
    tensors = load_file(quantized / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[f"{name}_shift"] = torch.randn(len(tensors[name]), 1)
        tensors[name] += tensors[f"{name}_shift"]
    save_file(tensors, quantized / "model.safetensors")
    config = json.loads((quantized / "config.json").read_text()) | {"quantization_config": {"quant_method": "shifted"}}
    (quantized / "config.json").write_text(json.dumps(config))
    return quantized, expanded


def test_a_method_that_is_not_in_the_table_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(ModelNotSupported, match=r"quantization method 'shifted' is not supported; supported: .*fp8"):
        load(folders[0])


def test_a_scheme_in_the_table_is_all_that_a_checkpoint_in_it_takes(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized, expanded = folders
    expected = PagedRun(load(expanded)).step({"a": PROMPT})["a"]
    monkeypatch.setitem(METHODS, "shifted", read_shifted)
    model = load(quantized)
    assert sum(isinstance(linear.form, ShiftedForm) for linear in model.linears()) == 4 * model.arch.num_layers
    torch.testing.assert_close(PagedRun(model).step({"a": PROMPT})["a"], expected, atol=1e-4, rtol=0)
    assert not can_compile(model), "there is no traced form of it"

    hidden = torch.randn(3, model.arch.hidden_size)
    mlps = [load_rank(quantized, rank, 2).layers[0].mlp for rank in range(2)]
    with torch.inference_mode():
        total = mlps[0](hidden) + mlps[1](hidden)
        torch.testing.assert_close(total, model.layers[0].mlp(hidden), atol=1e-4, rtol=1e-4)
