"""openai-python: the version that is installed, in every run; the first major ones and the newest beside it."""

from __future__ import annotations

import sys

import pytest

from tests.foreign.environments import PROGRAMS, python_with, run_program

PROGRAM = PROGRAMS / "openai_python.py"


def test_the_installed_version(demo_url: str) -> None:
    assert run_program([sys.executable, PROGRAM], demo_url)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("requirement", "version", "connects"),
    [("openai>=1,<2", "1.", False), ("openai[realtime]>=2,<3", "2.", True), ("openai[realtime]", "", True)],
    ids=["1.x", "2.x", "newest"],
)
def test_versions(requirement: str, version: str, connects: bool, demo_url: str) -> None:
    printed = run_program([python_with(requirement), PROGRAM], demo_url)
    assert printed.startswith(version)
    assert connects is ("no connect" not in printed)
