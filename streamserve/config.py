"""The engine's configuration: every field a flag of `streamserve serve`, with vLLM's name and meaning.

Validated here and nowhere else, and immutable. What is known only once the model is loaded (context length, number of blocks)
is in `EngineInfo`.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

import msgspec

from streamserve.errors import ConfigError

DTypeName = Literal["auto", "bfloat16", "float16", "float32", "half", "float"]
LoadFormat = Literal["auto", "safetensors", "gguf", "dummy"]
Device = Literal["auto", "cuda", "cpu"]
SchedulingPolicy = Literal["fcfs", "priority"]
ExecutorBackend = Literal["mp", "ray", "uni"]
ModelImpl = Literal["auto", "streamserve", "vllm", "transformers"]
KvCacheDType = Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"]
Quantization = Literal[
    "auto",
    "none",
    "int4",
    "fp8",
    "awq",
    "awq_marlin",
    "compressed-tensors",
    "fbgemm_fp8",
    "gptq",
    "gptq_marlin",
    "modelopt",
    "mxfp4",
]

BLOCK_SIZES = (16, 32, 64)
POOLING_TYPES = ("LAST", "MEAN")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything an engine needs to start. `replica` is no flag: a server sets it for each of its engines.

    model                   Hugging Face id, local folder, .gguf file, or "demo"
    model_impl              whose layers run the model: "auto" takes ours where the architecture has some, else transformers';
                            "vllm", vLLM's word for its own, means ours
    tokenizer_revision      of the tokenizer's repository, or of the model's where that has the tokenizer; None takes `revision`
    download_dir            where downloads from the Hub are kept; None for huggingface_hub's cache
    dtype                   of weights and activations; "auto" takes the checkpoint's
    max_model_len           tokens of prompt and output together; None takes the model's own limit, with LongRoPE the context
                            trained on
    gpu_memory_utilization  share of the GPU's memory that weights, activations and KV cache may fill; on a CPU, the share of
                            free memory that the KV cache may
    kv_cache_memory         bytes of the KV cache; None sizes it from free memory
    kv_cache_dtype          of keys and values: "fp8", which is "fp8_e4m3", and "fp8_e5m2" take half the memory of 16 bits;
                            "auto" takes what the checkpoint was calibrated for, and else `dtype`
    max_num_seqs            sequences that run at a time (rows)
    max_num_batched_tokens  token budget of one step
    max_queue               sequences that may wait for a row; further ones are refused with 429
    max_queue_tokens        tokens of the prompts of those that may wait
    max_queue_time_s        seconds that a request may wait for its first row; in any case half as long as clients are seen to
                            wait before they give up
    stall_timeout_s         seconds after which a paused stream whose reader takes nothing is failed
    overlap                 plan step n+1 while step n runs
    enforce_eager           no CUDA graphs; on a CPU, no compiled layers
    tensor_parallel_size    ranks that share every layer, each on a GPU of its own, or on a CPU with a share of the cores
    data_parallel_size      engines that each have the whole model, on GPUs of their own
    data_parallel_size_local  how many of them this machine runs: all; None says nothing else
    replica                 which of them an engine is
    most_step_tokens        that fit a step, if an engine before this one has found out when it ran out of memory
    enable_expert_parallel  ranks hold some experts each, instead of a share of every one
    distributed_executor_backend  "uni" runs the one rank in the engine's process, "mp" starts ranks as processes of this
                            machine, "ray" has Ray place them; None takes "uni" for one rank and "mp" for several
    disable_custom_all_reduce  GPUs exchange over NCCL alone, and map none of each other's memory
    quantization            "auto" keeps quantized weights as they are stored where the device multiplies them, and so does the
                            name of the checkpoint's method; "none" expands them; "fp8" rounds others to 8-bit floats while they
                            are loaded; "int4" is refused where 4-bit GGUF weights don't stay packed
    pooler_config           how embeddings are made: `pooling_type` "LAST" or "MEAN", and whether to `normalize`; what it leaves
                            out, or None, is as the checkpoint's own files say, else of the last token, and normalized
    """

    model: str
    tokenizer: str | None = None
    revision: str | None = None
    tokenizer_revision: str | None = None
    download_dir: str | None = None
    trust_remote_code: bool = False
    load_format: LoadFormat = "auto"
    model_impl: ModelImpl = "auto"
    dtype: DTypeName = "auto"
    device: Device = "auto"
    quantization: Quantization = "auto"
    seed: int = 0
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    kv_cache_memory: int | None = None
    kv_cache_dtype: KvCacheDType = "auto"
    block_size: int = 16
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    scheduling_policy: SchedulingPolicy = "fcfs"
    max_queue: int = 4096
    max_queue_tokens: int = 1 << 24
    max_queue_time_s: float | None = None
    stall_timeout_s: float = 60.0
    overlap: bool = True
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    data_parallel_size_local: int | None = None
    replica: int = 0
    most_step_tokens: int | None = None
    enable_expert_parallel: bool = False
    distributed_executor_backend: ExecutorBackend | None = None
    disable_custom_all_reduce: bool = False
    pooler_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_pooler(self.pooler_config or {})
        _check_parallel(self)
        if not self.enable_chunked_prefill and self.max_model_len and self.max_num_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"without chunked prefill a prompt must fit one step: raise --max-num-batched-tokens "
                f"to {self.max_model_len} or leave chunked prefill on"
            )

    @property
    def executor_backend(self) -> ExecutorBackend:
        """How ranks are started, once the default is filled in."""
        return self.distributed_executor_backend or ("uni" if self.tensor_parallel_size == 1 else "mp")

    def device_index(self, rank: int) -> int | None:
        """The GPU of a rank, among those of this machine; None where nothing is divided, for whichever comes first."""
        if self.tensor_parallel_size == self.data_parallel_size == 1:
            return None
        return self.replica * self.tensor_parallel_size + rank

    @property
    def num_ranks(self) -> int:
        """Ranks of all engines together, which share a machine's cores and memory where they run on CPUs."""
        return self.tensor_parallel_size * self.data_parallel_size


def _check_numbers(config: EngineConfig) -> None:
    if config.block_size not in BLOCK_SIZES:
        raise ConfigError(f"--block-size {config.block_size}: choose one of {', '.join(map(str, BLOCK_SIZES))}")
    if not 0.0 < config.gpu_memory_utilization <= 1.0:
        raise ConfigError(f"--gpu-memory-utilization {config.gpu_memory_utilization}: must be above 0 and at most 1")
    for flag, value in (
        ("--max-model-len", config.max_model_len),
        ("--max-num-seqs", config.max_num_seqs),
        ("--max-num-batched-tokens", config.max_num_batched_tokens),
        ("--max-queue", config.max_queue),
        ("--max-queue-tokens", config.max_queue_tokens),
        ("--kv-cache-memory", config.kv_cache_memory),
    ):
        if value is not None and value < 1:
            raise ConfigError(f"{flag} {value}: must be at least 1")
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"--max-num-batched-tokens {config.max_num_batched_tokens} is below --max-num-seqs {config.max_num_seqs}: "
            "every running sequence needs one token of each step, so raise the first or lower the second"
        )
    if config.max_queue_time_s is not None and config.max_queue_time_s <= 0:
        raise ConfigError(f"--max-queue-time {config.max_queue_time_s}: must be above 0 seconds")
    if config.stall_timeout_s <= 0:
        raise ConfigError(f"--stall-timeout {config.stall_timeout_s}: must be above 0 seconds")


def _check_pooler(pooler: dict[str, Any]) -> None:
    for name, value in pooler.items():
        if name == "pooling_type":
            if value not in POOLING_TYPES:
                raise ConfigError(f"--pooler-config: pooling_type must be one of {', '.join(POOLING_TYPES)}, got {value!r}")
        elif name not in ("normalize", "use_activation"):
            raise ConfigError(f"--pooler-config: {name!r} is not supported; known are pooling_type and normalize")
        elif not isinstance(value, bool):
            raise ConfigError(f"--pooler-config: {name} must be true or false, got {value!r}")


def _check_parallel(config: EngineConfig) -> None:
    if config.tensor_parallel_size < 1:
        raise ConfigError(f"--tensor-parallel-size {config.tensor_parallel_size}: must be at least 1")
    if config.pipeline_parallel_size != 1:
        raise ConfigError(
            f"--pipeline-parallel-size {config.pipeline_parallel_size}: only 1 is supported, since every GPU takes "
            "a share of each layer: use --tensor-parallel-size"
        )
    if config.data_parallel_size < 1:
        raise ConfigError(f"--data-parallel-size {config.data_parallel_size}: must be at least 1")
    if config.data_parallel_size_local not in (None, config.data_parallel_size):
        raise ConfigError(
            f"--data-parallel-size-local {config.data_parallel_size_local}: this machine runs all engines of its server, "
            f"{config.data_parallel_size}; for others start a server there, and put a load balancer in front"
        )
    if not 0 <= config.replica < config.data_parallel_size:
        raise ConfigError(f"replica {config.replica}: a server numbers its engines itself, from 0")
    if config.enable_expert_parallel and config.data_parallel_size > 1:
        raise ConfigError(
            f"--enable-expert-parallel with --data-parallel-size {config.data_parallel_size}: each engine has the whole "
            "model, and shares experts with no other: leave one of the two out"
        )
    if config.distributed_executor_backend == "ray" and not _has_ray():
        raise ConfigError(
            "--distributed-executor-backend ray: Ray is not installed; pip install 'streamserve[ray]', or leave the flag out"
        )
    if config.distributed_executor_backend == "uni" and config.tensor_parallel_size > 1:
        raise ConfigError(
            f"--distributed-executor-backend uni runs one rank, and --tensor-parallel-size is {config.tensor_parallel_size}: "
            "take mp or ray, or leave it out"
        )


def _has_ray() -> bool:
    found = find_spec("ray")
    # A folder of that name in the working folder is found too, and comes from no file.
    return found is not None and found.origin is not None


def replace(config: EngineConfig, **changes: Any) -> EngineConfig:
    """A copy with some fields changed, validated."""
    return msgspec.structs.replace(config, **changes)
