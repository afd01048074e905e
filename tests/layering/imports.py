"""What the project's files import, read from their syntax trees: nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Import:
    """One import statement's target.

    module    dotted name of the file that imports
    target    dotted name imported; of `from a import b` it is `a.b` when that is a module, else `a`
    is_eager  runs when the importing module is imported (not inside a function, not for type checkers only)
    """

    module: str
    target: str
    line: int
    is_eager: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def module_name(path: Path, base: Path) -> str:
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_under(package: Path, base: Path) -> list[Import]:
    """Every import in every file below `package`, whose modules are named from `base` on."""
    return [each for path in sorted(package.rglob("*.py")) for each in imports_of(path, base)]


def imports_of(path: Path, base: Path) -> Iterator[Import]:
    module = module_name(path, base)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node, is_eager in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        for target in _targets(node, package, base):
            yield Import(module, target, node.lineno, is_eager)


def _statements(tree: ast.AST, is_eager: bool = True) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node, is_eager
        else:
            is_deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _is_for_type_checkers(node)
            yield from _statements(node, is_eager and not is_deferred)


def _is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _targets(node: ast.Import | ast.ImportFrom, package: str, base: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    origin = node.module or ""
    if node.level:
        parent = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
        origin = f"{parent}.{origin}".rstrip(".")
    for alias in node.names:
        inner = base.joinpath(*origin.split("."), alias.name)
        yield f"{origin}.{alias.name}" if inner.is_dir() or inner.with_suffix(".py").is_file() else origin
