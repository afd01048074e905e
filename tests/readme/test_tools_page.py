"""The agents' loops of docs/TOOLS.md run as written, and bring the transcripts below them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.agent_server import agent_server

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "TOOLS.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, re.DOTALL)
LOOPS = [(source, shown) for (kind, source), (after, shown) in pairwise(BLOCKS) if (kind, after) == ("python", "text")]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with agent_server() as base_url:
        yield base_url


def test_there_is_a_loop_for_each_api() -> None:
    assert len(LOOPS) == 3


@pytest.mark.parametrize(("source", "shown"), LOOPS, ids=["chat completions", "responses", "messages"])
def test_an_agents_loop_brings_its_transcript(
    source: str, shown: str, base_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exec(source.replace("http://localhost:8000", base_url), {})
    written = capsys.readouterr().out
    assert [line for line in written.splitlines() if line] == shown.splitlines()
