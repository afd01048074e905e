"""Command-line options that several commands share, and the objects that their values describe."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar, cast

import click

from streamserve_client import terminal
from streamserve_client.async_client import AsyncClient
from streamserve_client.calls import API_KEY_VARIABLES, DEFAULT_BASE_URL
from streamserve_client.client import Client
from streamserve_client.errors import ClientError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

_POSITIVE = click.IntRange(min=1)

_CONNECTION = [
    click.option("--base-url", envvar="STREAMSERVE_BASE_URL", default=DEFAULT_BASE_URL, show_default=True, show_envvar=True),
    click.option("--api-key", envvar=list(API_KEY_VARIABLES), show_envvar=True, help="Sent as a bearer token."),
    click.option(
        "--timeout", type=click.FloatRange(0, min_open=True), default=600.0, show_default=True, help="Seconds of silence."
    ),
]
_SAMPLING = [
    click.option("--temperature", "-t", type=click.FloatRange(min=0), help="0 picks the likeliest token each time."),
    click.option("--top-p", type=float),
    click.option("--top-k", type=int),
    click.option("--min-p", type=float),
    click.option("--seed", type=int, help="Same seed, same text."),
    click.option("--stop", multiple=True, help="End before this text; may be repeated."),
    click.option("--presence-penalty", type=float),
    click.option("--frequency-penalty", type=float),
    click.option("--repetition-penalty", type=float),
    click.option("--ignore-eos", is_flag=True, default=None, help="Continue past the end of the text."),
    click.option(
        "--param", "-p", multiple=True, metavar="NAME=JSON", help="Any other parameter, such as -p logit_bias='{\"42\": -100}'."
    ),
]
_SAMPLING_NAMES = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "ignore_eos",
)
_OUTPUT = [
    click.option("--model", "-m", help="Default: the first that the server lists."),
    click.option("--json", "as_json", is_flag=True, help="One JSON object at the end instead of a stream of text."),
    click.option("--ws", "over_ws", is_flag=True, help="Over a WebSocket, whose stream survives a dropped connection."),
    click.option(
        "--progress/--no-progress",
        default=None,
        help="The place in the queue and how much of the prompt is read, on standard error. Default: on a terminal, where the "
        "server is streamserve.",
    ),
    click.option("--stats", is_flag=True, help="TTFT and tokens/s on standard error."),
]


def _adding(options: list[Decorator]) -> Decorator:
    def add(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def connection(command: CommandT) -> CommandT:
    """--base-url, --api-key, --timeout."""
    return cast(CommandT, _adding(_CONNECTION)(command))


def generation(*, max_tokens: int | None) -> Callable[[CommandT], CommandT]:
    """The connection, the sampling parameters and the form of the output; with a default of its own for --max-tokens."""
    limit = click.option(
        "--max-tokens", "-n", type=_POSITIVE, default=max_tokens, show_default=True, help="At most this many tokens."
    )
    return _adding([*_OUTPUT, limit, *_SAMPLING, *_CONNECTION])


def client(values: dict[str, Any]) -> Client:
    """The client that the connection options describe."""
    return Client(values["base_url"], api_key=values["api_key"], timeout=values["timeout"])


def async_client(values: dict[str, Any]) -> AsyncClient:
    """The same, for a WebSocket."""
    return AsyncClient(values["base_url"], api_key=values["api_key"], timeout=values["timeout"])


def wants_progress(client: Client, choice: bool | None) -> bool:
    """Whether progress is to be shown; `choice` is the option's. Other servers may refuse a request that asks for it."""
    if choice is not None or not sys.stderr.isatty():
        return bool(choice)
    with suppress(ClientError):
        return any(model.owned_by == "streamserve" for model in client.models())
    return False


def sampling(values: dict[str, Any]) -> dict[str, Any]:
    """The sampling parameters that the options set, by the API's names."""
    parameters = {name: values[name] for name in _SAMPLING_NAMES if values[name] is not None}
    if values["stop"]:
        parameters["stop"] = [terminal.argument_text(text) for text in values["stop"]]
    return parameters | {"extra_body": dict(map(_parameter, values["param"]))}


def _parameter(text: str) -> tuple[str, Any]:
    name, found, value = terminal.argument_text(text).partition("=")
    if not name or not found:
        raise click.BadParameter(f"{text!r}: write NAME=JSON", param_hint="--param")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def input_text(argument: str | None, what: str) -> str:
    """The argument, or standard input when it is missing or "-". Raises click's usage error when there is neither."""
    if argument is not None and argument != "-":
        return terminal.argument_text(argument)
    if argument is None and sys.stdin.isatty():
        raise click.UsageError(f"give a {what}, or pipe one in")
    return terminal.stdin_text()
