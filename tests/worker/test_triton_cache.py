"""Kernels compiled by further processes: which, for whom, and when not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path

import pytest

from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig, replace
from streamserve.worker.startup import triton_cache
from streamserve.worker.startup.triton_cache import CompileTarget, TritonCache
from streamserve.worker.startup.triton_compilation import claims_in

ROOT = Path(__file__).parents[2]
CONFIG = EngineConfig(model=str(ROOT / "benchmarks" / "configs" / "Qwen3-0.6B"), load_format="dummy", max_model_len=256)

COMPILES = """
import sys, torch
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig
from streamserve.worker.startup.triton_cache import CompileJob
from streamserve.worker.startup.triton_compilation import warmup_steps
from streamserve_kernels import Target, preload

config = EngineConfig(model=sys.argv[1], load_format="dummy", max_model_len=256, max_num_batched_tokens=8192)
preload()
from streamserve_kernels.compile_ahead import compile_only

asked = set()

def claim(name, key):
    is_new = name not in asked
    asked.add(name)
    return is_new and name == "_best_kernel"

with torch.inference_mode(), compile_only(Target((9, 0), 132), claim):
    for step in warmup_steps(CompileJob(config=config, checkpoint=checkpoint_of(config)), torch.bfloat16):
        step()
print(" ".join(sorted(asked)))
print([name for name in sys.modules if name in ("torch._dynamo", "sympy")])
"""


ALWAYS = {"_decode_kernel", "_prefill_kernel", "_one_row_kernel", "_some_rows_kernel", "_restricted_kernel"}
OF_MIXTURES = {"_norm_route_kernel", "_choose_kernel", "_product_kernel", "_sum_kernel", "_one_row_down_kernel"}


@pytest.mark.parametrize(
    ("model", "found"),
    [("Qwen3-0.6B", ALWAYS), pytest.param("Qwen3-30B-A3B", ALWAYS | OF_MIXTURES, marks=pytest.mark.slow)],
)
def test_every_kernel_of_a_start_is_found_without_a_gpu_and_without_torchs_compiler(
    model: str, found: set[str], tmp_path: Path
) -> None:
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    if hasattr(driver, "make_launcher") and find_library("cuda") is None:
        pytest.skip("Triton up to 3.6 links every kernel's launcher to NVIDIA's driver")
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COMPILES, str(Path(CONFIG.model).with_name(model))]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    kernels, loaded = done.stdout.splitlines()
    assert found <= set(kernels.split())
    assert loaded == "[]"
    assert len(list(tmp_path.glob("*/_best_kernel.cubin"))) == 1


def test_a_kernel_is_claimed_once(tmp_path: Path) -> None:
    first, second = claims_in(tmp_path), claims_in(tmp_path)
    assert first("kernel", (1, "bf16"))
    assert not second("kernel", (1, "bf16"))
    assert second("kernel", (2, "bf16"))
    assert second("other", (1, "bf16"))


def test_nothing_is_started_where_no_gpu_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_cache, "start_module", lambda *_, **__: pytest.fail("started a process"))
    for config, driver in ((replace(CONFIG, device="cpu"), tmp_path), (CONFIG, tmp_path / "none")):
        monkeypatch.setattr(triton_cache, "_DRIVER", driver)
        with TritonCache(config, checkpoint_of(config)) as cache:
            cache.start()
            cache.wait()


def test_a_process_that_fails_leaves_everything_to_the_rank(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton_cache, "_DRIVER", tmp_path)
    monkeypatch.setattr(triton_cache, "prepare_triton", lambda: None)

    def start(module: str, **_: object) -> subprocess.Popen[bytes]:
        failing = subprocess.Popen([sys.executable, "-c", "raise SystemExit(1)"], stdin=subprocess.PIPE)
        failing.wait()
        return failing

    monkeypatch.setattr(triton_cache, "start_module", start)
    with TritonCache(CONFIG, checkpoint_of(CONFIG)) as cache:
        cache.start()
        cache.send_target(CompileTarget(capability=(9, 0), multiprocessors=132, dtype="bfloat16"))
        cache.wait()


def test_of_several_engines_that_start_together_one_compiles_and_the_others_wait_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton_cache, "_DRIVER", tmp_path)
    monkeypatch.setattr(triton_cache, "prepare_triton", lambda: None)
    started: list[str] = []

    def start(module: str, **_: object) -> subprocess.Popen[bytes]:
        started.append(module)
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    monkeypatch.setattr(triton_cache, "start_module", start)
    checkpoint = checkpoint_of(CONFIG)
    with ThreadPoolExecutor(1) as other, TritonCache(CONFIG, checkpoint) as first:
        first.start()
        with TritonCache(CONFIG, checkpoint) as second:
            second.start()
            waiting = other.submit(second.wait)
            assert not waiting.done()
            first.mark_complete()
            waiting.result(timeout=10)
    assert len(started) == 1


def test_who_waits_goes_on_when_the_one_that_compiles_ends_before_it_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton_cache, "_DRIVER", tmp_path)
    monkeypatch.setattr(triton_cache, "prepare_triton", lambda: None)
    monkeypatch.setattr(
        triton_cache, "start_module", lambda *_, **__: subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE)
    )
    checkpoint = checkpoint_of(CONFIG)
    with TritonCache(CONFIG, checkpoint) as second:
        with TritonCache(CONFIG, checkpoint) as first:
            first.start()
            second.start()
        second.wait()


def test_what_was_compiled_is_remembered_for_this_model_and_these_sizes_with_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(triton_cache, "_DRIVER", tmp_path)
    monkeypatch.setattr(triton_cache, "prepare_triton", lambda: None)
    started: list[str] = []

    def start(module: str, **_: object) -> subprocess.Popen[bytes]:
        started.append(module)
        return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)

    monkeypatch.setattr(triton_cache, "start_module", start)
    for config in (CONFIG, CONFIG, replace(CONFIG, max_num_seqs=16)):
        with TritonCache(config, checkpoint_of(config)) as cache:
            cache.start()
            cache.wait()
            cache.mark_complete()
    assert started == ["streamserve.worker.startup.triton_process"] * 2
