"""The engine's settings as options, with the names and meanings of `vllm serve`.

Flags of vLLM that this version does not support are refused by name, in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args

import click

from streamserve.commands.vllm_flags import UNSUPPORTED
from streamserve.config import BLOCK_SIZES, Device, DTypeName, EngineConfig, ExecutorBackend, LoadFormat, SchedulingPolicy
from streamserve.errors import ConfigError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

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

_MODEL_OPTIONS = [
    click.option("--model", "model_flag", help='Hugging Face id, local folder, .gguf file, or "demo".'),
    click.option("--revision", help="Branch, tag or commit of the model's repository."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with the model's files."),
    click.option(
        "--load-format", type=click.Choice(get_args(LoadFormat)), help="How weights are stored; dummy makes random ones."
    ),
    click.option("--dtype", type=click.Choice(get_args(DTypeName)), help="Of weights and activations."),
    click.option("--device", type=click.Choice(get_args(Device)), help="Where to run."),
    click.option("--block-size", type=click.Choice([str(size) for size in BLOCK_SIZES]), help="Tokens per KV block."),
]
"""Which model, and in what form."""

_RUNNING_OPTIONS = [
    click.option("--tokenizer", help="Take the tokenizer from here instead of from the model."),
    click.option(
        "-q", "--quantization", type=click.Choice(["auto", "none", "int4"]), help="int4 keeps 4-bit GGUF weights packed."
    ),
    click.option("--seed", type=int, help="Makes the seeds of requests without one reproducible."),
    click.option("--max-model-len", type=AMOUNT, help="Tokens of prompt and output together."),
    click.option("--gpu-memory-utilization", type=float, help="Share of the GPU's memory to use; on a CPU, of what is free."),
    click.option(
        "--kv-cache-memory", "--kv-cache-memory-bytes", "kv_cache_memory", type=AMOUNT, help="Bytes for the KV cache, e.g. 2G."
    ),
    click.option("--enable-prefix-caching/--no-enable-prefix-caching", default=None, help="Reuse the KV of shared prefixes."),
    click.option("--enable-chunked-prefill/--no-enable-chunked-prefill", default=None, help="Split long prompts over steps."),
    click.option("--max-num-seqs", type=AMOUNT, help="Sequences that run at a time."),
    click.option("--max-num-batched-tokens", type=AMOUNT, help="Tokens of one step."),
    click.option("--scheduling-policy", type=click.Choice(get_args(SchedulingPolicy)), help="Who runs first."),
    click.option("--max-queue", type=AMOUNT, help="Sequences that may wait; more are refused with 429."),
    click.option("--stall-timeout", "stall_timeout_s", type=float, help="Seconds after which a paused stream is failed."),
    click.option(
        "--overlap/--no-overlap",
        "--async-scheduling/--no-async-scheduling",
        "overlap",
        default=None,
        help="Plan a step while the last one runs.",
    ),
    click.option("--enforce-eager", is_flag=True, default=None, help="No CUDA graphs; on a CPU, no compiled layers."),
    click.option("-tp", "--tensor-parallel-size", type=int, help="GPUs that share each layer."),
    click.option("-pp", "--pipeline-parallel-size", type=int, help="GPUs that share the layers."),
    click.option("-dp", "--data-parallel-size", type=int, help="Copies of the model."),
    click.option("--distributed-executor-backend", type=click.Choice(get_args(ExecutorBackend)), help="How ranks are started."),
]


class VllmCommand(click.Command):
    """A command that accepts vLLM's spelling, underscores in flags and several values after one, and refuses flags it lacks.

    lists  options that take all values up to the next flag
    """

    def __init__(self, *args: Any, lists: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self._lists = lists

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = [_dashed(argument) for argument in args]
        for flag in (argument.partition("=")[0] for argument in args):
            if flag in UNSUPPORTED or flag.replace("--no-", "--", 1) in UNSUPPORTED:
                raise click.UsageError(f"{flag} is a flag of vLLM's that this version does not support: leave it out", ctx)
        return super().parse_args(ctx, self._one_value_each(args))

    def _one_value_each(self, args: list[str]) -> list[str]:
        """`--names a b` as `--names a --names b`."""
        spread: list[str] = []
        current: str | None = None
        count = 0
        for argument in args:
            if argument.startswith("-"):
                current, count = (argument if argument in self._lists else None), 0
            elif current is not None:
                count += 1
                if count > 1:
                    spread.append(current)
            spread.append(argument)
        return spread


def _dashed(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument.partition("=")
    return flag.replace("_", "-") + equals + value


def engine_options(command: CommandT) -> CommandT:
    """Add the engine's options; the command passes their values to `engine_config`."""
    return model_options(_with(command, _RUNNING_OPTIONS))


def model_options(command: CommandT) -> CommandT:
    """Add only the options of which model, and in what form; for `engine_config` too."""
    return _with(command, _MODEL_OPTIONS)


def _with(command: CommandT, options: Sequence[Callable[[CommandT], CommandT]]) -> CommandT:
    for option in reversed(options):
        command = option(command)
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
    return EngineConfig(model=name, **{field: value for field, value in fields.items() if value is not None})
