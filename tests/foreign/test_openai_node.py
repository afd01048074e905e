"""openai-node: JavaScript's official client."""

from __future__ import annotations

import pytest

from tests.foreign.environments import PROGRAMS, node_modules_with, run_program


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_openai_node(demo_url: str) -> None:
    modules = node_modules_with("openai@latest")
    run_program(["node", PROGRAMS / "openai_node.mjs"], demo_url, environment={"MODULES": str(modules)})
