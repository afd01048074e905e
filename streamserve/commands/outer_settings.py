"""Options from outside the command line: `STREAMSERVE_*` in the environment, and a configuration file.

The command line comes first, then the environment, then the file, then defaults. One rule for every option: the name of its
flag without the dashes, in a file as it is (`max-num-seqs`) or with underscores, in the environment in capitals
(`STREAMSERVE_MAX_NUM_SEQS`). A flag is true or false; values of a list are separated by white space in the environment and are
a list in a file, which is in vLLM's format: YAML, with objects where an option takes JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from streamserve.commands.vllm_flags import check_value
from streamserve.errors import ConfigError
from streamserve.vllm_arguments import ARGUMENTS

PREFIX = "STREAMSERVE_"

_NO_OPTIONS = {"STREAMSERVE_API_KEY", "STREAMSERVE_BASE_URL", "STREAMSERVE_FAIL_POINTS", "STREAMSERVE_PDL"}
"""Variables with the prefix that are no options of a command."""

_OF_KUBERNETES = re.compile(r"_(SERVICE_(HOST|PORT)|PORT_\d+_(TCP|UDP|SCTP))(_|$)")
"""What a pod is told of a service whose name begins like this program's."""


class OuterValue(NamedTuple):
    """A value from outside.

    source  what to call it in an error: a variable, or a key of a file
    """

    source: str
    value: Any


def from_environment(options: Mapping[str, click.Option]) -> dict[str, OuterValue]:
    """Values in the environment, by parameter; other variables with the prefix are left alone.

    options  of a command, by each of their spellings

    Raises `ConfigError` for a value of vLLM's that is not supported.
    """
    values: dict[str, OuterValue] = {}
    for variable, flag, value in _variables():
        if flag in options:
            values |= _value(options[flag], flag, variable, value)
        elif (name := _argument(flag)) in ARGUMENTS:
            check_value(variable, name, value)
    return values


class UnknownVariable(NamedTuple):
    """A variable with the prefix that no option has.

    nearest  the flag that it may have been meant for, if there is one like it
    """

    variable: str
    nearest: str | None

    def __str__(self) -> str:
        """A sentence for whoever set it."""
        if self.nearest is None:
            return f"{self.variable} is no option and has no effect"
        meant = PREFIX + self.nearest[2:].upper().replace("-", "_")
        return f"{self.variable} is no option and has no effect: did you mean {meant} ({self.nearest})?"


def unknown_variables(options: Mapping[str, click.Option]) -> list[UnknownVariable]:
    """Variables with the prefix that set nothing, neither an option of the command nor anything else that is known."""
    unknown = [
        (variable, flag)
        for variable, flag, _ in _variables()
        if flag not in options and _argument(flag) not in ARGUMENTS and variable not in _NO_OPTIONS
    ]
    if not unknown:
        return []
    # Here and not at the top: few have any.
    from difflib import get_close_matches

    flags = [flag for flag in options if flag.startswith("--")]
    return [
        UnknownVariable(variable, next(iter(get_close_matches(flag, flags, n=1, cutoff=0.8)), None))
        for variable, flag in unknown
    ]


def _variables() -> Iterator[tuple[str, str, str]]:
    """Variables with the prefix, each with the flag that it would be and its value; without those of Kubernetes."""
    for variable, value in os.environ.items():
        # Kubernetes describes a service named streamserve to every pod: STREAMSERVE_PORT=tcp://10.0.0.1:8000.
        is_foreign = value.startswith("tcp://") or _OF_KUBERNETES.search(variable)
        if variable.startswith(PREFIX) and value and not is_foreign:
            yield variable, f"--{variable.removeprefix(PREFIX).lower().replace('_', '-')}", value


def _argument(flag: str) -> str:
    """What vLLM calls the argument of a flag."""
    return flag[2:].replace("-", "_")


def from_file(path: str, options: Mapping[str, click.Option]) -> dict[str, OuterValue]:
    """Values in a configuration file, by parameter.

    Raises `ConfigError` for a file that can't be read, and for one that names what is no option.
    """
    return from_mapping(_read(path), options, path)


def from_mapping(settings: Mapping[Any, Any], options: Mapping[str, click.Option], origin: str) -> dict[str, OuterValue]:
    """The same of settings that are read already; `origin` is what to call the place they are from."""
    values: dict[str, OuterValue] = {}
    for key, value in settings.items():
        flag, source = f"--{str(key).replace('_', '-')}", f"{key} in {origin}"
        if flag == "--config":
            raise ConfigError(f"{source}: a configuration file names no other")
        if flag in options:
            values |= _value(options[flag], flag, source, value)
        elif (name := _argument(flag)) in ARGUMENTS:
            check_value(source, name, value)
        else:
            raise ConfigError(f"{source}: there is no such option")
    return values


def _value(option: click.Option, flag: str, source: str, value: Any) -> dict[str, OuterValue]:
    """The value of an option's parameter, as click converts it; none for null, which is "not set"."""
    if value is None or option.name is None:
        return {}
    if option.is_flag:
        try:
            is_set = click.BOOL(value)
        except click.BadParameter as error:
            raise ConfigError(f"{source}: {error.message}") from error
        return {option.name: OuterValue(source, is_set is (flag in option.opts))}
    if option.multiple:
        listed = value.split() if isinstance(value, str) else value if isinstance(value, list) else [value]
        return {option.name: OuterValue(source, tuple(map(_text, listed)))}
    return {option.name: OuterValue(source, _text(value))}


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _read(path: str) -> Mapping[Any, Any]:
    # Here and not at the top: few commands have a file.
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path}: is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"--config {path}: must hold options, one a line, as in port: 8000")
    return content
