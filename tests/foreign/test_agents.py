"""Agents of LangChain, Pydantic AI and Instructor, and Anthropic's client for Node.js, with tools over each API."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.foreign.environments import PROGRAMS, node_modules_with, python_with, run_program
from tests.support.agent_server import agent_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def agent_url() -> Iterator[str]:
    with agent_server() as base_url:
        yield base_url


@pytest.mark.parametrize(
    ("program", "packages"),
    [
        ("langchain_agents.py", ["langchain", "langchain-openai", "langchain-anthropic"]),
        ("pydantic_ai_agents.py", ["pydantic-ai-slim[openai,anthropic]", "anthropic<2"]),
        ("instructor_client.py", ["instructor", "anthropic"]),
    ],
)
def test_agents_of_python(agent_url: str, program: str, packages: list[str]) -> None:
    run_program([python_with(*packages), PROGRAMS / program], agent_url)


def test_anthropic_node(agent_url: str) -> None:
    modules = node_modules_with("@anthropic-ai/sdk@latest")
    run_program(["node", PROGRAMS / "anthropic_node.mjs"], agent_url, environment={"MODULES": str(modules)})
