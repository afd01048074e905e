"""`streamserve collect-env`: what a report of a fault should say of the machine, to paste as it is.

Imports neither torch nor a server, so that it works where they don't. Values of variables that may be secrets are left out.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click

from streamserve.process.cache import compiled_layers

_PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "gguf", "huggingface-hub", "llguidance", "numpy"),
    *("litestar", "uvicorn", "uvloop", "httptools", "websockets", "msgspec", "anyio", "ray"),
)
_CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")
_VARIABLES = re.compile(
    "(STREAMSERVE|VLLM|HF|CUDA|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|TRITON|OMP|GOMP|MKL|RAY)_.*|LD_LIBRARY_PATH|LD_PRELOAD"
)
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")
_GPU_QUERY = "name,memory.total,compute_cap,driver_version"


@click.command("collect-env")
def collect_env() -> None:
    """Print versions, hardware and settings of this machine, to paste into a report. Secrets are left out."""
    for name, value in _facts():
        print(f"{name:<12} {value}")


def _facts() -> Iterator[tuple[str, str]]:
    yield "streamserve", f"{metadata.version('streamserve')} ({Path(__file__).resolve().parents[1]})"
    yield "Python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.platform()}, {' '.join(platform.libc_ver())}"
    yield "CPU", _cpu()
    yield "memory", _memory()
    yield from (("GPU", gpu) for gpu in _gpus())
    yield "packages", ", ".join(_versions())
    folder = compiled_layers()
    yield "layers", f"{folder} ({'compiled ones inside' if folder.is_dir() else 'none compiled'})"
    yield from (("variable", f"{name}={value}") for name, value in _variables())


def _cpu() -> str:
    lines = _lines("/proc/cpuinfo")
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    known = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    flags = " ".join(flag for flag in _CPU_FLAGS if flag in known)
    return f"{model}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores usable{f', {flags}' if flags else ''}"


def _memory() -> str:
    sizes = dict(re.findall(r"^(\w+): +(\d+) kB", "\n".join(_lines("/proc/meminfo")), re.MULTILINE))
    total, available = (int(sizes.get(name, 0)) / 2**20 for name in ("MemTotal", "MemAvailable"))
    return f"{total:.1f} GiB, {available:.1f} GiB available"


def _gpus() -> list[str]:
    """A line for each, as the driver describes it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ["none (no nvidia-smi)"]
    command = [program, f"--query-gpu={_GPU_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi failed: {error}"]
    if done.returncode:
        return [f"nvidia-smi failed: {' '.join((done.stdout + done.stderr).split())}"]
    return done.stdout.strip().splitlines() or ["none"]


def _versions() -> Iterator[str]:
    for name in _PACKAGES:
        try:
            yield f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"no {name}"


def _variables() -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        if _VARIABLES.fullmatch(name):
            yield name, "(set, not shown)" if _SECRET.search(name) else value


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
