"""The engine's settings as options, with the names and meanings of `vllm serve`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, get_args

import click
import msgspec

from streamserve.commands.json_object import json_object
from streamserve.commands.vllm_command import CommandT, option
from streamserve.config import (
    BLOCK_SIZES,
    Device,
    DTypeName,
    EngineConfig,
    ExecutorBackend,
    KvCacheDType,
    LoadFormat,
    ModelImpl,
    Quantization,
    SchedulingPolicy,
)
from streamserve.errors import ConfigError

_UNITS = {"k": 1000, "m": 1000**2, "g": 1000**3, "K": 1024, "M": 1024**2, "G": 1024**3}


class Amount(click.ParamType[int]):
    """A whole number that may end in k, m, g (thousands) or K, M, G (powers of 1024), as vLLM's "25.6k"."""

    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value).strip().removesuffix("B").removesuffix("i")
        unit = _UNITS.get(text[-1:], 1)
        try:
            amount = float(text[:-1]) * unit if unit != 1 else float(int(text))
        except ValueError:
            self.fail(f"{value!r} is no whole number such as 4096, 4k or 2G", param, ctx)
        if not amount.is_integer():
            self.fail(f"{value!r} is no whole number", param, ctx)
        return int(amount)


AMOUNT = Amount()

_DEFAULTS = {field.name: field.default for field in msgspec.structs.fields(EngineConfig)}


def _option(group: str, *names: str, **attributes: Any) -> Callable[[CommandT], CommandT]:
    """An option whose default is that of `EngineConfig`, where it has a value."""
    field = next((name for name in names if name.isidentifier()), names[-1].partition("/")[0][2:].replace("-", "_"))
    default = _DEFAULTS.get(field)
    shown = "on" if default is True else "" if default in (None, False, msgspec.NODEFAULT) else str(default)
    return option(group, *names, shown_default=shown, **attributes)


_model = partial(_option, "Model")
_memory = partial(_option, "Memory")
_scheduling = partial(_option, "Scheduling")
_devices = partial(_option, "Devices")

_MODEL_OPTIONS = [
    _model("--model", "model_flag", help='Hugging Face id, local folder, .gguf file, or "demo".'),
    _model("--revision", help="Branch, tag or commit of the model's repository."),
    _model("--download-dir", help="Where downloads from the Hub are kept; else where HF_HUB_CACHE says."),
    _model("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with the model's files."),
    _model("--load-format", type=click.Choice(get_args(LoadFormat)), help="How weights are stored; dummy makes random ones."),
    _model(
        "--model-impl", type=click.Choice(get_args(ModelImpl)), help="Whose layers run the model; auto prefers streamserve's."
    ),
    _model("--dtype", type=click.Choice(get_args(DTypeName)), help="Of weights and activations."),
    _devices("--device", type=click.Choice(get_args(Device)), help="Where to run."),
    _memory("--block-size", type=click.Choice([str(size) for size in BLOCK_SIZES]), help="Tokens per KV block."),
]
"""Which model, and in what form."""

_RUNNING_OPTIONS = [
    _model("--tokenizer", help="Take the tokenizer from here instead of from the model."),
    _model("--tokenizer-revision", help="Branch, tag or commit of the tokenizer's repository."),
    _model("-q", "--quantization", type=click.Choice(get_args(Quantization)), help="fp8 rounds weights while they are loaded."),
    _model("--seed", type=int, help="Makes the seeds of requests without one reproducible."),
    _model(
        "--pooler-config",
        "--override-pooler-config",
        "pooler_config",
        help='How embeddings are made: JSON object with pooling_type, "LAST" or "MEAN", and normalize.',
    ),
    _model("--max-model-len", type=AMOUNT, help="Tokens of prompt and output together; the model's own limit by default."),
    _memory("--gpu-memory-utilization", type=float, help="Share of the GPU's memory to use; on a CPU, of what is free."),
    _memory("--kv-cache-memory", "--kv-cache-memory-bytes", "kv_cache_memory", type=AMOUNT, help="Bytes for the KV cache: 2G."),
    _memory(
        "--kv-cache-dtype",
        type=click.Choice(get_args(KvCacheDType)),
        help="Of keys and values; fp8 is fp8_e4m3, and twice the tokens.",
    ),
    _memory("--enable-prefix-caching/--no-enable-prefix-caching", default=None, help="Reuse the KV of shared prefixes."),
    _scheduling("--enable-chunked-prefill/--no-enable-chunked-prefill", default=None, help="Split long prompts over steps."),
    _scheduling("--max-num-seqs", type=AMOUNT, help="Sequences that run at a time."),
    _scheduling("--max-num-batched-tokens", type=AMOUNT, help="Tokens of one step."),
    _scheduling("--scheduling-policy", type=click.Choice(get_args(SchedulingPolicy)), help="Who runs first."),
    _scheduling("--max-queue", type=AMOUNT, help="Sequences that may wait; more are refused with 429."),
    _scheduling("--max-queue-tokens", type=AMOUNT, help="Tokens of the prompts that may wait; more are refused with 429."),
    _scheduling(
        "--max-queue-time",
        "max_queue_time_s",
        type=float,
        help="Seconds a request may wait to begin; by default for as long as its client is likely to.",
    ),
    _scheduling("--stall-timeout", "stall_timeout_s", type=float, help="Seconds after which a paused stream is failed."),
    _scheduling(
        "--overlap/--no-overlap",
        "--async-scheduling/--no-async-scheduling",
        "overlap",
        default=None,
        help="Plan a step while the last one runs.",
    ),
    _devices("--enforce-eager", is_flag=True, default=None, help="No CUDA graphs; on a CPU, no compiled layers."),
    _devices("-tp", "--tensor-parallel-size", type=int, help="GPUs that share each layer, a process each."),
    _devices("-pp", "--pipeline-parallel-size", type=int, help="1: all GPUs share every layer."),
    _devices("-dp", "--data-parallel-size", type=int, help="Engines with the whole model each, behind one endpoint."),
    _devices("-dpl", "--data-parallel-size-local", type=int, help="Engines on this machine: all of them."),
    _devices(
        "-ep",
        "--enable-expert-parallel/--no-enable-expert-parallel",
        default=None,
        help="Divide a mixture by experts among the GPUs that share each layer.",
    ),
    _devices(
        "--distributed-executor-backend",
        type=click.Choice(get_args(ExecutorBackend)),
        help="Who starts the processes: mp this program, ray a cluster; uni has one rank in the engine's.",
    ),
    _devices("--disable-custom-all-reduce", is_flag=True, default=None, help="GPUs exchange over NCCL alone."),
]


def engine_options(command: CommandT) -> CommandT:
    """Add the engine's options; the command passes their values to `engine_config`."""
    return model_options(_with(command, _RUNNING_OPTIONS))


def model_options(command: CommandT) -> CommandT:
    """Add only the options of which model, and in what form; for `engine_config` too."""
    return _with(command, _MODEL_OPTIONS)


def _with(command: CommandT, options: Sequence[Callable[[CommandT], CommandT]]) -> CommandT:
    for add in reversed(options):
        command = add(command)
    return command


def engine_config(model: str | None, values: dict[str, Any]) -> EngineConfig:
    """The configuration that the options describe; removes its fields from `values`. Raises `ConfigError`."""
    flag = values.pop("model_flag", None)
    if model is not None and flag is not None and model != flag:
        raise ConfigError(f"two models are named, {model} and {flag}: leave one out")
    name = model or flag
    if name is None:
        raise ConfigError('name a model: --model with a Hugging Face id, a local folder, a .gguf file, or "demo"')
    fields = {field: values.pop(field) for field in EngineConfig.__struct_fields__ if field in values}
    if fields.get("block_size") is not None:
        fields["block_size"] = int(fields["block_size"])
    if fields.get("pooler_config") is not None:
        fields["pooler_config"] = json_object("--pooler-config", fields["pooler_config"])
    return EngineConfig(model=name, **{field: value for field, value in fields.items() if value is not None})
