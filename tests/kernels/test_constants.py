"""What the compiler demands of kernels, and Triton's interpreter does not notice."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

KERNELS = Path(__file__).parents[2] / "kernels" / "streamserve_kernels"


def kernels() -> Iterator[tuple[Path, ast.FunctionDef]]:
    for file in sorted(KERNELS.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and any("kernel(" in ast.unparse(each) for each in node.decorator_list):
                yield file, node


def specialized(kernel: ast.FunctionDef) -> set[str]:
    """Numbers that are constants of a binary of their own where they are 1."""
    exempt = " ".join(map(ast.unparse, kernel.decorator_list))
    numbers = {each.arg for each in kernel.args.args if each.annotation is None and not each.arg.endswith("_ptr")}
    return {each for each in numbers if repr(each) not in exempt}


def outside_of_branches(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """All that is run whatever the constants are."""
    for statement in statements:
        if not isinstance(statement, ast.If):
            yield from ast.walk(statement)


def test_a_number_that_is_a_constant_where_it_is_1_is_not_asked_to_convert_itself() -> None:
    found = [
        f"{file.name}:{node.lineno}: {ast.unparse(node)}"
        for file, kernel in kernels()
        for node in outside_of_branches(kernel.body)
        if isinstance(node, ast.Attribute) and node.attr == "to" and ast.unparse(node.value) in specialized(kernel)
    ]
    assert found == []
    assert sum(1 for _ in kernels()) > 20
