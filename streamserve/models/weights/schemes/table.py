"""Which scheme a linear's weight has, by the checkpoint's description, and the form that it takes; no tensor is read for it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.weights.forms.expanded import ExpandedAtLast, QuantizedForm
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.awq import read_awq
from streamserve.models.weights.schemes.compressed_tensors import read_compressed_tensors
from streamserve.models.weights.schemes.fbgemm import read_fbgemm
from streamserve.models.weights.schemes.four_bits import StoredFourBits
from streamserve.models.weights.schemes.fp8 import read_fp8
from streamserve.models.weights.schemes.gguf import GgufIntegers
from streamserve.models.weights.schemes.gptq import read_gptq
from streamserve.models.weights.schemes.modelopt import read_modelopt
from streamserve.models.weights.schemes.mxfp4 import read_mxfp4
from streamserve.models.weights.schemes.on_load import quantize_on_load
from streamserve.models.weights.schemes.scheme import PLAIN, Reader, Scheme, Schemes
from streamserve.models.weights.storage import WeightStorage

METHODS: dict[str, Reader] = {
    "awq": read_awq,
    "compressed-tensors": read_compressed_tensors,
    "fbgemm_fp8": read_fbgemm,
    "fp8": read_fp8,
    "gptq": read_gptq,
    "modelopt": read_modelopt,
    "mxfp4": read_mxfp4,
}
"""By the `quant_method` of a `quantization_config`."""


_ALSO_CALLED = {"awq_marlin": "awq", "gptq_marlin": "gptq"}
"""vLLM's names of kernels for a method, which people give in its place."""


def make_form(spec: WeightSpec, place: Placement) -> Form:
    """The unfilled form of a weight.

    Raises `ModelNotSupported` for parts of a fused linear that are stored unlike, and as `schemes_of`.
    """
    form = _scheme_of(spec, schemes_of(place.storage)).form(spec, place)
    if place.storage.quantization == "none" and isinstance(form, QuantizedForm):
        return ExpandedAtLast(form, spec, place)
    return form


def schemes_of(storage: WeightStorage) -> Schemes:
    """The scheme of every linear.

    Raises `ModelNotSupported` as `read_schemes`, and `ConfigError` when another method is asked for than the checkpoint's.
    """
    if storage.quantization_config:
        _refuse_another_method(storage)
        return _but_plain(read_schemes(storage.quantization_config), storage.names)
    if storage.quantization == "fp8":
        return quantize_on_load
    if storage.quantization in METHODS or storage.quantization in _ALSO_CALLED:
        raise ConfigError(f"--quantization {storage.quantization}: the checkpoint is not quantized; leave it out, or use fp8")
    digits = storage.num_digits

    def scheme_of(name: str) -> Scheme:
        stored = digits.get(f"{name}.weight")
        return PLAIN if stored is None else GgufIntegers(stored)

    return scheme_of


def read_schemes(config: Mapping[str, Any]) -> Schemes:
    """What a `quantization_config` says. Raises `ModelNotSupported` for methods and settings that there is no scheme for."""
    method = config.get("quant_method", "unknown")
    if method not in METHODS:
        raise ModelNotSupported(
            f"quantization method {method!r} is not supported; supported: {', '.join(METHODS)}, and .gguf files"
        )
    return METHODS[method](config)


def _but_plain(schemes: Schemes, names: Collection[str]) -> Schemes:
    """The same, but for what is stored as numbers whatever the config says: not all tools list what they left out."""

    def scheme_of(name: str) -> Scheme:
        scheme = schemes(name)
        return PLAIN if isinstance(scheme, StoredFourBits) and f"{name}.weight" in names else scheme

    return scheme_of


def _refuse_another_method(storage: WeightStorage) -> None:
    method, asked = storage.quantization_config.get("quant_method"), storage.quantization
    if asked not in ("auto", "none") and _ALSO_CALLED.get(asked, asked) != method:
        raise ConfigError(f"--quantization {asked}: the checkpoint is quantized by the method {method!r}; leave it out")


def _scheme_of(spec: WeightSpec, schemes: Schemes) -> Scheme:
    by_part = {part.name: schemes(part.name) for part in spec.parts}
    first, *others = set(by_part.values())
    if not others:
        return first
    if all(scheme.has_numbers for scheme in by_part.values()):
        return PLAIN
    said = ", ".join(f"{name} is {scheme}" for name, scheme in by_part.items())
    raise ModelNotSupported(f"linears that are multiplied together must be quantized alike: {said}")
