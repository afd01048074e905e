"""The sampling options of the commands that generate in this process; names as in `SamplingParams`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from streamserve.commands.vllm_command import CommandT, option

_NAMES = ("max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")


def sampling_options(max_tokens: int) -> Callable[[CommandT], CommandT]:
    """Add the options; the command passes their values to `sampling_values`."""
    sampling = partial(option, "Sampling")
    options = [
        sampling("--max-tokens", type=int, default=max_tokens, help="The most tokens to generate."),
        sampling("--temperature", type=float, help="0 takes the likeliest token every time."),
        sampling("--top-p", type=float, help="Sample among the likeliest tokens that make up this share."),
        sampling("--top-k", type=int, help="Sample among this many of the likeliest tokens."),
        sampling("--min-p", type=float, help="Leave out tokens below this share of the likeliest one."),
        sampling("--repetition-penalty", type=float, help="Above 1 makes repetition less likely."),
        sampling("--stop", multiple=True, help="End before this text; may be repeated."),
        sampling("--stats", is_flag=True, help="Print time to first token and tokens per second."),
    ]

    def add(command: CommandT) -> CommandT:
        for each in reversed(options):
            command = each(command)
        return command

    return add


def sampling_values(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters that the options set, by `SamplingParams` name."""
    return {**{name: values[name] for name in _NAMES}, "stop": list(values["stop"]) or None}
