"""LangChain's ChatOpenAI."""

from __future__ import annotations

import pytest

from tests.foreign.environments import PROGRAMS, python_with, run_program


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_langchain(demo_url: str) -> None:
    run_program([python_with("langchain-openai"), PROGRAMS / "langchain_chat.py"], demo_url)
