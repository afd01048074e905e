"""`streamserve compile MODEL`: compile a model's layers for this CPU, once; engines that start later find them."""

from __future__ import annotations

import time
from typing import Any

import click
from rich.console import Console

from streamserve.checkpoint.names import checkpoint_of
from streamserve.commands.engine_options import engine_config, model_options
from streamserve.commands.vllm_command import VllmCommand
from streamserve.worker.startup.compiled_layers import compile_for

NAMES = {
    "before": "what comes before attention",
    "after": "what comes after attention",
    "decode": "layers of decode steps",
    "decode_few": "layers of decode steps with few rows",
}


@click.command("compile", cls=VllmCommand)
@click.argument("model", required=False)
@model_options
def compile_layers(model: str | None, **values: Any) -> None:
    """Compile the layers of MODEL for this CPU, which takes a minute and a C++ compiler.

    What is compiled lies in ~/.cache/streamserve. Every engine that starts later with the same model, --dtype, --block-size,
    CPU and torch uses it, unless --enforce-eager is given.
    """
    config = engine_config(model, values)
    checkpoint = checkpoint_of(config)
    console, began = Console(stderr=True), time.perf_counter()
    with console.status("Compiling") as status:
        folder = compile_for(config, checkpoint, lambda name: status.update(f"Compiling {NAMES[name]}"))
    console.print(f"Compiled layers lie in {folder} ({time.perf_counter() - began:.0f} s)", soft_wrap=True)
