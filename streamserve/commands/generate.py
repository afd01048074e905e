"""`streamserve generate PROMPT`: load a model and continue one prompt, streaming to the terminal."""

from __future__ import annotations

import sys
from typing import Any

import click

from streamserve.commands.engine_options import engine_config, engine_options
from streamserve.commands.local_model import local_model
from streamserve.commands.sampling_options import sampling_options, sampling_values
from streamserve.commands.vllm_command import VllmCommand


@click.command(cls=VllmCommand)
@click.argument("prompt", required=False)
@engine_options
@sampling_options(max_tokens=128)
def generate(prompt: str | None, **values: Any) -> None:
    """Continue PROMPT (default: standard input) with --model, streaming the text."""
    sampling = sampling_values(values)
    config = engine_config(None, values)
    text = sys.stdin.buffer.read().decode("utf-8", "replace").removesuffix("\n") if prompt is None else prompt
    with local_model(config) as model:
        model.complete(text, sampling, stats=values["stats"])
