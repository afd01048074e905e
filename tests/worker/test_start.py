"""What a rank finds out, and refuses, before its first step."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.scheduling.plan import Plan, RowGrowth, RowStart, RowWork
from streamserve.types import Sampling
from streamserve.worker.device.cpu import CpuDevice
from streamserve.worker.device.memory import Memory, host_memory
from streamserve.worker.device.select import open_device
from streamserve.worker.runner import Runner
from streamserve.worker.startup.phases import Phases, explain_out_of_memory
from streamserve.worker.startup.progress import weights_bar
from streamserve.worker.startup.resolved_settings import resolve_dtype
from tests.models.families import FAMILIES, reference_model
from tests.support.sampling import log_softmax
from tests.support.tiny_model import VOCAB, TinyLlama

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "checkpoint_dtype", "expected"),
    [
        ("auto", "bfloat16", torch.bfloat16),
        ("auto", "float16", torch.float16),
        ("auto", "float32", torch.bfloat16),
        ("bfloat16", "float32", torch.bfloat16),
        ("half", "bfloat16", torch.float16),
        ("float16", "bfloat16", torch.float16),
        ("float", "bfloat16", torch.float32),
        ("float32", "bfloat16", torch.float32),
    ],
)
def test_dtype_names_on_a_cpu(name: str, checkpoint_dtype: str, expected: torch.dtype) -> None:
    assert resolve_dtype(name, checkpoint_dtype, CPU) == expected  # type: ignore[arg-type]


def test_float32_checkpoints_run_in_float16_on_a_gpu() -> None:
    assert resolve_dtype("auto", "float32", torch.device("cuda")) == torch.float16


def test_a_loaded_rank_says_what_it_serves_and_how_long_each_part_took(tiny: TinyLlama) -> None:
    config = EngineConfig(model=tiny.path, device="cpu", dtype="float32", max_num_seqs=4)
    info = Runner(config, resolve(tiny.path)).load()
    assert (info.architecture, info.dtype, info.vocab_size) == ("LlamaForCausalLM", "float32", VOCAB)
    assert (info.max_model_len, info.max_num_seqs, info.block_size) == (256, 4, 16)
    assert info.kv_capacity_tokens == 4 * 256
    assert info.device.startswith("cpu")
    assert list(info.startup_s) == ["weights", "kv_cache", "warmup"]
    assert all(seconds >= 0 for seconds in info.startup_s.values())


def test_a_context_beyond_the_models_positions_is_refused(tiny: TinyLlama) -> None:
    config = EngineConfig(model=tiny.path, device="cpu", max_model_len=257)
    with pytest.raises(ConfigError, match=r"--max-model-len 257: the model reaches 256 tokens"):
        Runner(config, resolve(tiny.path)).load()


def test_a_rank_says_how_far_a_model_reaches_that_serves_the_context_trained_on(tmp_path: Path) -> None:
    reference_model(*FAMILIES["phi3-long"]).save_pretrained(tmp_path)
    checkpoint = resolve(str(tmp_path))
    found = [
        Runner(EngineConfig(model=str(tmp_path), device="cpu", max_model_len=length), checkpoint).load()
        for length in (None, 128)
    ]
    assert [(info.max_model_len, info.model_limit) for info in found] == [(32, 128), (128, None)]


def test_a_rank_steps_only_after_it_has_loaded(tiny: TinyLlama) -> None:
    runner = Runner(EngineConfig(model=tiny.path), resolve(tiny.path))
    with pytest.raises(RuntimeError, match="loaded"):
        runner.step(Plan(1, [], [], [RowWork(0, 0, 1, 1)]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="--device cuda"):
        open_device("cuda")


class Gpu(CpuDevice):
    """A device whose memory is its own."""

    def memory(self) -> Memory:
        return Memory(16 << 30, 8 << 30)


@pytest.mark.parametrize(
    ("part", "advice"),
    [("weights", "a smaller model or a larger machine"), ("warmup", "give it less with --kv-cache-memory")],
)
def test_running_out_of_a_machines_memory_speaks_of_no_gpu(part: str, advice: str) -> None:
    phases = Phases()
    shortage = explain_out_of_memory(open_device("cpu"), EngineConfig(model="m"), phases)
    with pytest.raises(ConfigError, match=f"at {part}: .*{advice}"), shortage, phases.measure(part):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("part", "advice"),
    [
        ("weights", "use --dtype half"),
        ("kv_cache", "lower --max-num-batched-tokens to 1024"),
        ("graphs", "lower --gpu-memory-utilization to 0.85"),
    ],
)
def test_running_out_of_memory_names_the_part_and_the_flag(part: str, advice: str) -> None:
    phases = Phases()
    shortage = explain_out_of_memory(Gpu(), EngineConfig(model="m"), phases)
    with pytest.raises(ConfigError, match=f"at {part}: .*{advice}"), shortage, phases.measure(part):
        raise torch.OutOfMemoryError("CUDA out of memory")


def write_machine(proc: Path, *, groups: str = "0::/\n") -> None:
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:       16384 kB\nMemFree:  100 kB\nMemAvailable:   8192 kB\n")
    (proc / "self" / "cgroup").write_text(groups)


def write_group(folder: Path, *, limit: str, files: int = 0) -> None:
    """A group of cgroup v2 that holds 3 MiB and `files` bytes of cached files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(limit + "\n")
    (folder / "memory.current").write_text(f"{(3 << 20) + files}\n")
    (folder / "memory.stat").write_text(f"anon 0\nfile {files}\ninactive_file {files // 4}\nactive_file {files - files // 4}\n")


MACHINE = Memory(16 << 20, 8 << 20, is_host=True)


def test_host_memory_is_the_machines_unless_a_container_has_less(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write_machine(proc)
    assert host_memory(proc, groups) == MACHINE
    write_group(groups, limit="max")
    assert host_memory(proc, groups) == MACHINE
    write_group(groups, limit=str(4 << 20))
    assert host_memory(proc, groups) == Memory(4 << 20, 1 << 20, is_host=True)
    write_group(groups, limit=str(64 << 20))
    assert host_memory(proc, groups) == MACHINE


def test_files_that_are_only_cached_leave_a_containers_memory_free(tmp_path: Path) -> None:
    """A container whose page cache held the model's files was said to have 0.0 MiB free, and refused to start."""
    write_machine(tmp_path / "proc")
    write_group(tmp_path / "cgroup", limit=str(7 << 20), files=4 << 20)
    assert host_memory(tmp_path / "proc", tmp_path / "cgroup") == Memory(7 << 20, 4 << 20, is_host=True)


def test_the_tightest_of_the_groups_around_a_process_counts(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    write_machine(proc, groups="0::/user.slice/shell.scope\n")
    write_group(groups / "user.slice" / "shell.scope", limit="max")
    write_group(groups / "user.slice", limit=str(5 << 20))
    write_group(groups, limit=str(12 << 20))
    assert host_memory(proc, groups) == Memory(5 << 20, 2 << 20, is_host=True)


def test_a_container_of_the_first_version_of_control_groups_is_bounded_too(tmp_path: Path) -> None:
    proc, group = tmp_path / "proc", tmp_path / "cgroup" / "memory"
    write_machine(proc, groups="5:devices:/docker/1\n4:memory:/docker/1\n0::/\n")
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{6 << 20}\n")
    (group / "memory.usage_in_bytes").write_text(f"{5 << 20}\n")
    (group / "memory.stat").write_text(f"inactive_file 0\ntotal_inactive_file {1 << 20}\ntotal_active_file {2 << 20}\n")
    assert host_memory(proc, tmp_path / "cgroup") == Memory(6 << 20, 4 << 20, is_host=True)


def test_the_weights_bar_shows_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with weights_bar("model") as on_progress:
        assert on_progress is None
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with weights_bar("tiny") as on_progress:
        assert on_progress is not None
        on_progress(500_000, 1_000_000)
    assert "loading tiny" in terminal.getvalue()
    assert "1.0 MB" in terminal.getvalue()


class Terminal(io.StringIO):
    """Standard error of an interactive session."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "half", "float"])
def test_every_dtype_runs_on_a_cpu(tiny: TinyLlama, dtype: str) -> None:
    config = EngineConfig(model=tiny.path, device="cpu", dtype=dtype, max_num_seqs=2)  # type: ignore[arg-type]
    runner = Runner(config, resolve(tiny.path))
    runner.load()
    start = RowStart(0, [5, 6, 7], 3, Sampling(seed=1, temperature=0.0, logprobs=1))
    result = runner.step(Plan(1, [start], [RowGrowth(0, 0, 0, [0])], [RowWork(0, 0, 3, 1)])).wait()
    assert result.logprobs is not None
    assert result.logprobs[0] is not None
    [entry] = result.logprobs[0]
    assert entry.rank == 1
    expected = tiny.logits((5, 6, 7))[-1]
    assert entry.logprob == pytest.approx(log_softmax(expected)[expected.argmax()], abs=0.2)
