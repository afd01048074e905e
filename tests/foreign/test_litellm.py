"""litellm."""

from __future__ import annotations

import pytest

from tests.foreign.environments import PROGRAMS, python_with, run_program


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_litellm(demo_url: str) -> None:
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}  # it would ask for a list of prices else
    run_program([python_with("litellm"), PROGRAMS / "litellm_client.py"], demo_url, environment=offline)
