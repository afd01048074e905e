"""The AI SDK, whose second turn names the items of the first instead of sending them."""

from __future__ import annotations

import pytest

from tests.foreign.environments import PROGRAMS, node_modules_with, run_program


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ai_sdk(demo_url: str) -> None:
    modules = node_modules_with("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "zod")
    run_program(["node", PROGRAMS / "ai_sdk.mjs"], demo_url, environment={"MODULES": str(modules)})
