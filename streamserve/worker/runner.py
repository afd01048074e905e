"""One rank from start to step: opens its device, loads its model, sizes its KV cache, then runs plans.

Everything here runs on the rank's launch thread.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.pooling import pooling_of
from streamserve.config import EngineConfig
from streamserve.models.architectures.base import CausalModel
from streamserve.models.implementation import describe
from streamserve.models.weights.loader import load_model
from streamserve.scheduling.plan import Plan
from streamserve.types import EngineInfo
from streamserve.worker.communication.base import Join, RankGroup, alone
from streamserve.worker.device.base import Device
from streamserve.worker.device.select import open_device
from streamserve.worker.divided_steps import Pending, StepDivider
from streamserve.worker.kv_cache import allocate, count_blocks
from streamserve.worker.kv_layout import KvLayout, lay_out
from streamserve.worker.rows.rows import RankLimits, Rows
from streamserve.worker.startup.activation_memory import measure_activations
from streamserve.worker.startup.compiled_layers import is_compiled, run_compiled
from streamserve.worker.startup.kernel_warmup import kernel_steps, run_at_once
from streamserve.worker.startup.phases import Phases, explain_out_of_memory
from streamserve.worker.startup.progress import weights_bar
from streamserve.worker.startup.resolved_settings import (
    kv_cache_dtype_name,
    resolve_dtype,
    resolve_kv_cache_dtype,
    resolve_max_model_len,
)
from streamserve.worker.startup.triton_cache import CompileTarget, TritonCache
from streamserve.worker.step import StepRunner
from streamserve.worker.step_memory import AgreedMemory, LargestStep, TriedMemory
from streamserve_kernels import preload


class Runner:
    """A rank. `load` first, once; then `step` for every plan, in order."""

    def __init__(
        self,
        config: EngineConfig,
        checkpoint: Checkpoint,
        triton_cache: TritonCache | None = None,
        *,
        device_index: int | None = None,
        join: Join = alone,
    ) -> None:
        """triton_cache  started before torch was imported; without one every kernel is compiled here
        device_index  which of this process's GPUs to take; None takes torch's current one
        join          joins the other ranks of the model
        """
        self._config = config
        self._device_index = device_index
        self._join = join
        self._checkpoint = checkpoint
        self._triton_cache = triton_cache or TritonCache(config, checkpoint)
        self._steps: StepRunner | None = None

    @torch.inference_mode()
    def load(self) -> EngineInfo:
        """Get ready to run steps.

        Raises `ConfigError` when model, device and settings don't go together; its message names the flag to change.
        """
        config, phases = self._config, Phases()
        arch = describe(self._checkpoint.config, config.model_impl)
        max_model_len = resolve_max_model_len(config.max_model_len, arch)
        device = open_device(config.device, self._device_index)
        ranks = self._join(device)
        dtype = resolve_dtype(config.dtype, arch.dtype, device.torch_device)
        kv_dtype = resolve_kv_cache_dtype(config.kv_cache_dtype, self._checkpoint.config, dtype)
        layout = lay_out(
            [state.among(ranks.world_size) for state in arch.layer_states],
            max_model_len=max_model_len,
            block_size=config.block_size,
            step_tokens=config.max_num_batched_tokens,
            dtype=kv_dtype,
        )
        if device.target is not None:
            self._triton_cache.send_target(CompileTarget(**device.target._asdict(), dtype=_name(dtype)))
        with device.stream(), explain_out_of_memory(device, config, phases):
            with phases.measure("weights"), weights_bar(self._checkpoint.source) as on_progress:
                model = load_model(
                    self._checkpoint,
                    arch,
                    dtype=dtype,
                    device=device.torch_device,
                    quantization=config.quantization,
                    max_model_len=max_model_len,
                    communicator=ranks,
                    divides_experts=config.enable_expert_parallel,
                    kv_dtype=kv_dtype,
                    on_progress=on_progress,
                )
                if device.compiles_layers and not config.enforce_eager:
                    model = run_compiled(model, config, self._checkpoint)
            limits = RankLimits(config.max_num_seqs, max_model_len, config.block_size, arch.vocab_size, layout.group_of)
            rows = Rows(device, limits)
            if device.captures:
                self._load_kernels(device, model, rows, layout, dtype, ranks, phases)
            with phases.measure("kv_cache"):
                most_tokens, most_lines = config.max_num_batched_tokens, config.max_num_seqs
                num_bytes = measure_activations(device, model, rows, layout, most_tokens, most_lines)
                num_blocks = ranks.smallest(_size_cache(config, device, layout, max_model_len, num_bytes))
                largest = LargestStep(most_tokens, most_lines, num_bytes)
                memory = TriedMemory() if ranks.world_size == 1 else AgreedMemory(device, ranks, largest)
                divider = StepDivider(config.most_step_tokens)
                self._steps = StepRunner(device, model, rows, allocate(layout, num_blocks, device), memory, divider)
            if device.captures and not config.enforce_eager:
                with phases.measure("graphs"):
                    self._steps.capture(config.max_num_batched_tokens)
            with phases.measure("warmup"):
                self._steps.warm_up()
        return EngineInfo(
            model=self._checkpoint.source,
            architecture=arch.architecture,
            model_impl=arch.model_impl,
            dtype=_name(dtype),
            kv_cache_dtype=kv_cache_dtype_name(kv_dtype),
            device=device.name if ranks.world_size == 1 else f"{ranks.world_size} x {device.name}",
            max_model_len=max_model_len,
            vocab_size=arch.vocab_size,
            num_blocks=num_blocks,
            block_size=config.block_size,
            windows=layout.groups.windows,
            max_num_seqs=config.max_num_seqs,
            model_limit=arch.max_model_len if config.max_model_len is None and max_model_len < arch.max_model_len else None,
            embedding_size=model.state_size,
            pooling=pooling_of(self._checkpoint, config.pooler_config or {}),
            compiled=is_compiled(model) if device.compiles_layers else None,
            startup_s=phases.seconds,
        )

    def _load_kernels(
        self,
        device: Device,
        model: CausalModel,
        rows: Rows,
        layout: KvLayout,
        dtype: torch.dtype,
        ranks: RankGroup,
        phases: Phases,
    ) -> None:
        """Load the libraries and kernels that steps launch, compiling what the cache lacks."""
        with phases.measure("compile"):
            preload()
            device.load_libraries()
            steps = kernel_steps(device, model, rows, layout, dtype, self._config.max_num_batched_tokens)
            self._triton_cache.wait()
            # Of ranks on one machine the first compiles for all.
            ranks.smallest(0)
        with phases.measure("kernels"), ranks.silenced():
            run_at_once(device, steps)
            self._triton_cache.mark_complete()

    def step(self, plan: Plan) -> Pending:
        """Launch one step; steps run in the order launched. Wait for the result on another thread."""
        if self._steps is None:
            raise RuntimeError("a rank steps only after it has loaded")
        return self._steps.step(plan)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _size_cache(config: EngineConfig, device: Device, layout: KvLayout, max_model_len: int, activation_bytes: int) -> int:
    memory = device.memory()
    if memory.is_host:
        # Ranks on CPUs take it from each other, those of other engines too.
        memory = replace(memory, free=memory.free // config.num_ranks)
    return count_blocks(config, layout, max_model_len, memory, activation_bytes, device.kv_cache_cap)
