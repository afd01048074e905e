"""The kernels know tensors and no models: nothing in them is named after a family, or after a part of one."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

from streamserve.models.registry import REGISTRY
from tests.layering.imports import ROOT, imports_under

KERNELS = ROOT / "kernels" / "streamserve_kernels"
FAMILIES = {re.split(r"\d|For", name)[0].lower() for name in REGISTRY}
PARTS = {"architecture", "checkpoint", "decoder", "mlp"}


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name


def words_of(name: str) -> set[str]:
    """`DecodeLayer_step` is decode, layer and step."""
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}


def test_no_name_in_the_kernels_is_one_of_models() -> None:
    assert "llama" in FAMILIES
    wrong = []
    for path in KERNELS.rglob("*.py"):
        names = {path.stem, *names_in(ast.parse(path.read_text(encoding="utf-8")))}
        wrong += [f"{path.name}: {name}" for name in sorted(names) if words_of(name) & (FAMILIES | PARTS)]
    assert not wrong, "\n".join(wrong)


def test_the_kernels_import_torch_triton_and_the_standard_library_only() -> None:
    roots = {each.target.split(".")[0] for each in imports_under(KERNELS, KERNELS.parent)}
    assert roots - sys.stdlib_module_names == {"streamserve_kernels", "torch", "triton"}
