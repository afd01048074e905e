"""What importing a module really loads, in a fresh interpreter: the syntax trees don't see what third parties drag in."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.layering.imports import ROOT

HEAVY = ["torch", "transformers", "triton", "ray"]

LOADS_NONE_OF = {
    "streamserve": [*HEAVY, "anyio", "litestar", "uvicorn", "numpy"],
    "streamserve.types": [*HEAVY, "anyio", "numpy"],
    "streamserve.checkpoint": [*HEAVY, "anyio", "huggingface_hub", "gguf", "numpy"],
    "streamserve.checkpoint.names": [*HEAVY, "anyio", "huggingface_hub", "gguf", "numpy"],
    "streamserve.scheduling.plan": [*HEAVY, "anyio", "asyncio", "streamserve.scheduling.scheduler"],
    "streamserve.scheduling.scheduler": [*HEAVY, "anyio", "asyncio", "numpy"],
    "streamserve.executor.local": [*HEAVY, "litestar"],
    "streamserve.engine.core": [*HEAVY, "litestar", "uvicorn"],
    "streamserve.engine.remote": [*HEAVY, "litestar", "uvicorn"],
    "streamserve.engine.process.main": [*HEAVY, "litestar", "uvicorn"],
    "streamserve.text.preparation": [*HEAVY, "litestar"],
    "streamserve.frontend": [*HEAVY, "litestar"],
    "streamserve.server.app": HEAVY,
    "streamserve.server.process.main": HEAVY,
    "streamserve.cli": [*HEAVY, "anyio", "litestar", "uvicorn"],
    "streamserve.commands.models": [*HEAVY, "anyio", "litestar", "uvicorn", "numpy"],
    "streamserve.commands.serve": HEAVY,
    "streamserve.llm": HEAVY,
    "streamserve.async_engine": HEAVY,
    "streamserve_client": [*HEAVY, "streamserve", "litestar", "numpy"],
    "streamserve_kernels": ["triton", "streamserve", "transformers"],
}


@pytest.mark.parametrize("module", LOADS_NONE_OF)
def test_importing_a_module_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    loaded = sorted(set(json.loads(done.stdout)) & set(LOADS_NONE_OF[module]))
    assert not loaded, f"import {module} loads {', '.join(loaded)}"


def test_the_names_of_the_package_come_from_their_homes_on_first_use() -> None:
    code = "import sys, streamserve as s; print(s.SamplingParams.__module__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert done.stdout.split() == ["streamserve.types.sampling", "False"]


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    import streamserve

    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        streamserve.Nonsense  # noqa: B018
