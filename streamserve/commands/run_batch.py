"""`streamserve run-batch -i requests.jsonl -o results.jsonl MODEL`: answer a file of requests without a server."""

from __future__ import annotations

import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import click
from rich.console import Console

from streamserve.async_engine import AsyncEngine
from streamserve.batch.results_file import open_results
from streamserve.batch.run import Counts, run_batch
from streamserve.commands.answer_options import answer_options, answer_settings, sampling_defaults
from streamserve.commands.engine_options import engine_config, engine_options
from streamserve.commands.vllm_command import VllmCommand, option
from streamserve.config import replace
from streamserve.errors import ConfigError, Unavailable
from streamserve.process.signals import exiting_on
from streamserve.server.app import create_app
from streamserve.server.config import ServerConfig
from streamserve.server.service import Service
from streamserve.text.preparation import MAX_SEED

_batch = partial(option, "Batch")
_QUEUE, _QUEUE_TOKENS = 1 << 20, 1 << 40
_LINES_PER_SEQUENCE = 2
"""So that a sequence that ends is followed by one whose prompt is tokenised already."""


@click.command("run-batch", cls=VllmCommand, lists=("--served-model-name",))
@click.argument("model", required=False)
@_batch("-i", "--input-file", required=True, help="Requests, one JSON object a line, in OpenAI's batch format.")
@_batch("-o", "--output-file", required=True, help="Where results go; lines that have one there are not sent again.")
@_batch("--config", expose_value=False, help="YAML file of options; the command line wins.")
@engine_options
@answer_options
def run_batch_command(model: str | None, input_file: str, output_file: str, **values: Any) -> None:
    """Answer the requests in a file with MODEL, in this process.

    A request that is refused gets a result that says why, and the others go on. Run the command again after it was cut off: it
    goes on where it was.
    """
    seed = values["seed"]
    defaults, uses_model_defaults = sampling_defaults(values)
    engine = engine_config(model, values)
    server = ServerConfig(**answer_settings(values, engine), cors=None, seed=seed)
    source, target = Path(input_file), Path(output_file)
    if not source.is_file():
        raise ConfigError(f"--input-file {source}: no such file")
    if target.exists() and target.samefile(source):
        raise ConfigError(f"--output-file {target}: is the input as well")
    run = partial(
        _run,
        replace(engine, max_queue=_QUEUE, max_queue_tokens=_QUEUE_TOKENS),
        server,
        defaults,
        uses_model_defaults,
        source,
        target,
    )
    with exiting_on(signal.SIGTERM):
        anyio.run(run, backend_options={"use_uvloop": sys.platform != "win32"})


async def _run(
    engine_settings: Any, server: ServerConfig, defaults: dict[str, Any], uses_model_defaults: bool, source: Path, target: Path
) -> None:
    next_seed = None if server.seed is None else partial(random.Random(server.seed).randrange, MAX_SEED)
    engine = AsyncEngine(
        config=engine_settings,
        chat_template=server.chat_template,
        allow_special_tokens_in_messages=server.allow_special_tokens_in_messages,
        max_logprobs=server.max_logprobs,
        next_seed=next_seed,
        tune_process=True,
    )
    console, counts = Console(stderr=True), Counts()
    with open_results(target) as results, console.status(f"Loading {engine_settings.model} …") as status:
        async with engine:
            service = Service(server)
            service.attach(engine.frontend, {**(engine.sampling_defaults if uses_model_defaults else {}), **defaults})
            async with service.delivery.running():
                with source.open("rb") as lines, _telling_how_far(counts, target, console):
                    await run_batch(
                        create_app(service),
                        lines,
                        results,
                        counts,
                        concurrency=_LINES_PER_SEQUENCE * engine.info.max_num_seqs,
                        on_result=lambda: status.update(_summary(counts)),
                    )
    if counts.failure is not None:
        raise Unavailable(f"{counts.failure}; run the command again to go on in {target}")
    console.print(_summary(counts), highlight=False)


@contextmanager
def _telling_how_far(counts: Counts, target: Path, console: Console) -> Iterator[None]:
    """Say how far a batch got that Ctrl-C or a signal cuts off."""
    try:
        yield
    except anyio.get_cancelled_exc_class():
        console.print(
            f"interrupted: {_summary(counts)}; results are in {target}: run the command again to go on", highlight=False
        )
        raise


def _summary(counts: Counts) -> str:
    parts = [f"{counts.answered} answered", f"{counts.refused} refused"]
    return ", ".join([*parts, f"{counts.skipped} done before"] if counts.skipped else parts)
