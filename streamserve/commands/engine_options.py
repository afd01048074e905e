"""The engine's settings as options, with the names and meanings of `vllm serve`.

Flags of vLLM's that ask for what is not built are refused by name, in one line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

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
        if amount != int(amount):
            self.fail(f"{value!r} is no whole number", param, ctx)
        return int(amount)


AMOUNT = Amount()

_OPTIONS = [
    click.option("--model", "model_flag", help='Hugging Face id, local folder, .gguf file, or "demo".'),
    click.option("--tokenizer", help="Take the tokenizer from here instead of from the model."),
    click.option("--revision", help="Branch, tag or commit of the model's repository."),
    click.option("--trust-remote-code", is_flag=True, default=None, help="Run code that comes with the model's files."),
    click.option("--load-format", type=click.Choice(get_args(LoadFormat)), help="How weights are stored; dummy makes random ones."),
    click.option("--dtype", type=click.Choice(get_args(DTypeName)), help="Of weights and activations."),
    click.option("--device", type=click.Choice(get_args(Device)), help="Where to run."),
    click.option("-q", "--quantization", type=click.Choice(["auto", "none", "int4"]), help="int4 keeps 4-bit GGUF weights packed."),
    click.option("--seed", type=int, help="Makes the seeds of requests that bring none reproducible."),
    click.option("--max-model-len", type=AMOUNT, help="Tokens of prompt and output together."),
    click.option("--gpu-memory-utilization", type=float, help="Share of the GPU's memory to use."),
    click.option(
        "--kv-cache-memory", "--kv-cache-memory-bytes", "kv_cache_memory", type=AMOUNT, help="Bytes for the KV cache, e.g. 2G."
    ),
    click.option("--block-size", type=click.Choice([str(size) for size in BLOCK_SIZES]), help="Tokens per KV block."),
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
    click.option("--enforce-eager", is_flag=True, default=None, help="No CUDA graphs."),
    click.option("--batch-invariant", is_flag=True, default=None, help="Same bits whatever the batch, a little slower."),
    click.option("-tp", "--tensor-parallel-size", type=int, help="GPUs that share each layer."),
    click.option("-pp", "--pipeline-parallel-size", type=int, help="GPUs that share the layers."),
    click.option("-dp", "--data-parallel-size", type=int, help="Copies of the model."),
    click.option("--distributed-executor-backend", type=click.Choice(get_args(ExecutorBackend)), help="How ranks are started."),
]

_UNSUPPORTED = frozenset(
    """
    --additional-config --attention-backend --block-allocator --calculate-kv-scales --code-revision --collect-detailed-traces --compilation-config
    --config --config-format --convert --cpu-offload-gb --cuda-graph-sizes --data-parallel-address --data-parallel-backend
    --data-parallel-rank --data-parallel-rpc-port --data-parallel-size-local --data-parallel-start-rank --decode-context-parallel-size
    --default-mm-loras --disable-cascade-attn --disable-custom-all-reduce --disable-frontend-multiprocessing --disable-fastapi-docs
    --disable-hybrid-kv-cache-manager --disable-sliding-window --download-dir --enable-auto-tool-choice --enable-dbo --enable-eplb
    --enable-expert-parallel --enable-force-include-usage --enable-log-outputs --enable-log-requests --enable-lora --enable-mfu-metrics
    --enable-multimodal-encoder-data-parallel --enable-prompt-embeds --enable-prompt-tokens-details --enable-reasoning
    --enable-request-id-headers --enable-server-load-tracking --enable-sleep-mode --enable-ssl-refresh --enable-tokenizer-info-endpoint
    --eplb-config --exclude-tools-when-tool-choice-none --fully-sharded-loras --guided-decoding-backend --headless --hf-config-path --hf-overrides
    --hf-token --h11-max-header-count --h11-max-incomplete-event-size --ignore-patterns --interleave-mm-strings --io-processor-plugin
    --kv-cache-dtype --kv-events-config --kv-offloading-backend --kv-offloading-size --kv-sharing-fast-prefill --kv-transfer-config
    --limit-mm-per-prompt --log-config-file --logits-processor-pattern --logits-processors --logprobs-mode --long-prefill-token-threshold
    --lora-dtype --lora-modules --mamba-cache-dtype --mamba-ssm-cache-dtype --master-addr --master-port --max-cpu-loras --max-log-len
    --max-long-partial-prefills --max-lora-rank --max-loras --max-num-partial-prefills --max-parallel-loading-workers --max-seq-len-to-capture
    --media-io-kwargs --middleware --mm-encoder-tp-mode --mm-processor-cache-gb --mm-processor-cache-type --mm-processor-kwargs --model-impl
    --model-loader-extra-config --nnodes --node-rank --num-gpu-blocks-override --num-lookahead-slots --otlp-traces-endpoint
    --override-attention-dtype --override-neuron-config --override-pooler-config --pooler-config --preemption-mode --prefix-caching-hash-algo
    --pt-load-map-location --ray-workers-use-nsight --reasoning-parser --reasoning-parser-plugin --response-role --rope-scaling --rope-theta --runner
    --safetensors-load-strategy --scheduler-cls --scheduler-delay-factor --scheduler-reserve-full-isl --show-hidden-metrics-for-version
    --skip-mm-profiling --skip-tokenizer-init --speculative-config --ssl-refresh --structured-outputs-config --swap-space --task
    --tokenizer-mode --tokenizer-pool-extra-config --tokenizer-pool-size --tokenizer-pool-type --tokenizer-revision --tool-call-parser
    --tool-parser-plugin --tool-server --uds --use-tqdm-on-load --use-v2-block-manager --video-pruning-rate --worker-cls
    --worker-extension-cls
    """.split()
)


class VllmCommand(click.Command):
    """A command that takes vLLM's spelling: underscores in flags, several values after one flag, and says which flags it lacks.

    lists  options that take all values up to the next flag
    """

    def __init__(self, *args: Any, lists: tuple[str, ...] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self._lists = lists

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = [_dashed(argument) for argument in args]
        for flag in (argument.partition("=")[0] for argument in args):
            if flag in _UNSUPPORTED or flag.replace("--no-", "--", 1) in _UNSUPPORTED:
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
    """Add the engine's options; the command hands what it gets to `engine_config`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def engine_config(model: str | None, values: dict[str, Any]) -> EngineConfig:
    """The configuration that the options describe; takes what it knows out of `values`. Raises `ConfigError`."""
    flag = values.pop("model_flag", None)
    if model is not None and flag is not None and model != flag:
        raise ConfigError(f"two models are named, {model} and {flag}: leave one out")
    name = model or flag
    if name is None:
        raise ConfigError('name a model: --model with a Hugging Face id, a local folder, a .gguf file, or "demo"')
    given = {field: values.pop(field) for field in EngineConfig.__struct_fields__ if field in values}
    if given.get("block_size") is not None:
        given["block_size"] = int(given["block_size"])
    return EngineConfig(model=name, **{field: value for field, value in given.items() if value is not None})
