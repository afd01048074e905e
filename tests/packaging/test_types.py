"""Which functions mypy may find without annotations: Triton's, which are typed by their arguments, and no others."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "kernels" / "streamserve_kernels"
RELAXED = "disallow_untyped_defs"


def functions_of(module: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)]


def is_triton(function: ast.FunctionDef) -> bool:
    """Whether Triton compiles it: decorated with `triton.jit` or `kernel(...)`."""
    return any(ast.unparse(decorator).startswith(("triton.jit", "kernel(")) for decorator in function.decorator_list)


def is_annotated(function: ast.FunctionDef) -> bool:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    needed = [each for each in every if each is not None and each.arg not in ("self", "cls")]
    return function.returns is not None and all(each.annotation is not None for each in needed)


def test_only_modules_with_triton_functions_may_leave_out_annotations() -> None:
    overrides = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["overrides"]
    relaxed = {name for each in overrides if each.get(RELAXED) is False for name in each["module"]}
    with_triton = {
        ".".join(path.relative_to(KERNELS.parent).with_suffix("").parts)
        for path in KERNELS.rglob("*.py")
        if any(map(is_triton, functions_of(path)))
    }
    assert relaxed == with_triton


def test_every_host_function_of_the_kernels_is_annotated() -> None:
    wrong = [
        f"{path.name}:{function.lineno} {function.name}"
        for path in KERNELS.rglob("*.py")
        for function in functions_of(path)
        if not is_triton(function) and not is_annotated(function)
    ]
    assert not wrong, "\n".join(wrong)
