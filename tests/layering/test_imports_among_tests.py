"""Tests know no other tests: what several of them use is a module beside them, or in tests/support."""

from __future__ import annotations

from tests.layering.imports import ROOT, imports_under


def test_no_module_imports_a_test_module() -> None:
    imports = imports_under(ROOT / "tests", ROOT)
    wrong = [str(each) for each in imports if any(part.startswith("test_") for part in each.target.split("."))]
    assert not wrong, "\n".join(wrong)
