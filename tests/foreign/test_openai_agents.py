"""openai-agents, over HTTP and over its WebSocket."""

from __future__ import annotations

import pytest

from tests.foreign.environments import PROGRAMS, python_with, run_program


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_openai_agents(demo_url: str) -> None:
    run_program([python_with("openai-agents"), PROGRAMS / "openai_agents.py"], demo_url)
