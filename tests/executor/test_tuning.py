"""Process-wide settings: changed where this program owns the process or a host program asks for it, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.executor.tuning import COMPILED_SPIN_COUNT, KERNEL_CACHES, SPIN_COUNT
from streamserve.models.aot.marks import mark_compiled
from streamserve.process.switch_interval import SWITCH_S
from tests.support.process_settings import environment_without_settings

TUNE = """
import json, sys
from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.executor.tuning import tune_after_loading, tune_before_loading
from tests.support.process_settings import process_settings
tune_before_loading(EngineConfig(model="demo", **json.loads(sys.argv[1])), resolve("demo"))
tune_after_loading()
print(json.dumps(process_settings()))
"""

LOAD = """
import json, sys
from streamserve import LLM
from tests.support.process_settings import process_settings
before = process_settings()
with LLM("demo", device="cpu", max_model_len=64, kv_cache_memory=1 << 24, **json.loads(sys.argv[1])) as llm:
    llm.generate("Once upon a time", use_tqdm=False)
    print(json.dumps([before, process_settings()]))
"""

UNTUNED = {"switch_interval_s": 0.005, "openmp": {}, "kept_kernels": {}, "keeps_freed_memory": False}


def run(program: str, *arguments: str, cache: Path, **environment: str) -> Any:
    """What a program of its own reports, in an environment that sets nothing for OpenMP but `environment`."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment_without_settings() | {"XDG_CACHE_HOME": str(cache)} | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_openmp_threads_spin_longer_where_the_layers_of_this_model_are_compiled(tmp_path: Path) -> None:
    assert run(TUNE, "{}", cache=tmp_path)["openmp"] == {"GOMP_SPINCOUNT": SPIN_COUNT}
    library = tmp_path / "streamserve" / "compiled"
    library.mkdir(parents=True)
    assert run(TUNE, "{}", cache=tmp_path)["openmp"] == {"GOMP_SPINCOUNT": SPIN_COUNT}, "those of another model"
    mark_compiled(EngineConfig(model="demo"), resolve("demo"), library)
    assert run(TUNE, "{}", cache=tmp_path)["openmp"] == {"GOMP_SPINCOUNT": COMPILED_SPIN_COUNT}
    for other in ('{"enforce_eager": true}', '{"block_size": 32}'):
        assert run(TUNE, other, cache=tmp_path)["openmp"] == {"GOMP_SPINCOUNT": SPIN_COUNT}, other


@pytest.mark.parametrize("environment", [{"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "PASSIVE"}])
def test_what_the_environment_sets_for_openmp_stays(environment: dict[str, str], tmp_path: Path) -> None:
    assert run(TUNE, "{}", cache=tmp_path, **environment)["openmp"] == environment


def test_what_the_environment_sets_for_onednn_stays(tmp_path: Path) -> None:
    settings = run(TUNE, "{}", cache=tmp_path, LRU_CACHE_CAPACITY="7")
    assert settings["kept_kernels"] == KERNEL_CACHES | {"LRU_CACHE_CAPACITY": "7"}


def test_a_host_program_stays_as_it_is(tmp_path: Path) -> None:
    assert run(LOAD, "{}", cache=tmp_path) == [UNTUNED, UNTUNED]


def test_a_host_program_is_tuned_when_it_asks_for_it(tmp_path: Path) -> None:
    before, after = run(LOAD, '{"tune_process": true}', cache=tmp_path)
    assert before == UNTUNED
    assert after == {
        "switch_interval_s": SWITCH_S,
        "openmp": {"GOMP_SPINCOUNT": SPIN_COUNT},
        "kept_kernels": KERNEL_CACHES,
        "keeps_freed_memory": True,
    }
