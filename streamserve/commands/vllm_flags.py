"""vLLM's flags that are no options here: accepted where they describe what happens anyway, else refused by name.

Pure functions of the words of a command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from streamserve.errors import ConfigError
from streamserve.vllm_arguments import ARGUMENTS, SHORT, refusal


def without_vllm_flags(arguments: list[str], options: Mapping[str, click.Option]) -> list[str]:
    """The arguments that are for the command itself.

    options  of the command, by each of their spellings

    Raises `ConfigError` for a flag whose value is not supported.
    """
    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if argument == "--":
            return [*kept, argument, *rest]
        if flag in options:
            words = [argument] if equals or options[flag].is_flag else [argument, *_next(rest)]
            # vLLM's spelling of an option that is not given.
            kept += [] if words[-1].removeprefix(f"{flag}=") == "None" else words
        elif (name := _name_of(flag)) is None:
            kept.append(argument)
        else:
            _check(flag, name, value if equals else None, rest)
    return kept


def check_value(spelling: str, name: str, value: Any) -> None:
    """Raise `ConfigError` unless this value of an argument of vLLM's describes what happens anyway."""
    if isinstance(value, str):
        value = click.BOOL(value) if ARGUMENTS[name].is_flag else _parsed(value)
    if (reason := refusal(name, value)) is not None:
        raise ConfigError(f"{spelling}: not supported: {reason}")


def _check(flag: str, name: str, text: str | None, rest: Iterator[str]) -> None:
    if ARGUMENTS[name].is_flag:
        return check_value(flag, name, not flag.startswith("--no-"))
    if text is None:
        text = next(iter(_next(rest)), "")
    value = _parsed(text)
    # vLLM sets one key of an object as --structured-outputs-config.backend auto.
    for key in reversed(flag.split(".")[1:]):
        value = {key: value}
    return check_value(flag, name, value)


def _name_of(flag: str) -> str | None:
    """The name in `ARGUMENTS` that a word spells."""
    if flag in SHORT:
        return SHORT[flag]
    if flag.startswith("-O") and not flag.startswith("--"):
        return SHORT["-O"]
    if not flag.startswith("--"):
        return None
    name = flag[2:].partition(".")[0].replace("-", "_")
    positive = name.removeprefix("no_")
    if positive in ARGUMENTS and (positive == name or ARGUMENTS[positive].is_flag):
        return positive
    return None


def _next(rest: Iterator[str]) -> list[str]:
    return [word for word in [next(rest, None)] if word is not None]


def _parsed(text: str) -> Any:
    """A value as a command line spells it: JSON, vLLM's None, or text."""
    if text == "None":
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
