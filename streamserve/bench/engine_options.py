"""The engine's configuration as command-line options: one per field of `EngineConfig`, under the field's name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from streamserve.config import EngineConfig

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

_PLAIN: dict[type[msgspec.inspect.Type], click.ParamType[Any]] = {
    msgspec.inspect.IntType: click.INT,
    msgspec.inspect.FloatType: click.FLOAT,
    msgspec.inspect.StrType: click.STRING,
}


def engine_options(command: CommandT) -> CommandT:
    """Add the options; the command gets them as keyword arguments for `engine_config`, unset ones as None."""
    kind = msgspec.inspect.type_info(EngineConfig)
    assert isinstance(kind, msgspec.inspect.StructType)
    for field in reversed(kind.fields):
        command = _option(field)(command)
    return command


def _option(field: msgspec.inspect.Field) -> Callable[[CommandT], CommandT]:
    flag = f"--{field.name.replace('_', '-')}"
    kind = _without_none(field.type)
    if isinstance(kind, msgspec.inspect.BoolType):
        return click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None)
    choice = click.Choice([str(value) for value in kind.values]) if isinstance(kind, msgspec.inspect.LiteralType) else None
    required = field.default is msgspec.NODEFAULT
    return click.option(flag, field.name, type=choice or _PLAIN[type(kind)], required=required)


def _without_none(kind: msgspec.inspect.Type) -> msgspec.inspect.Type:
    if isinstance(kind, msgspec.inspect.UnionType):
        return next(part for part in kind.types if not isinstance(part, msgspec.inspect.NoneType))
    return kind


def engine_config(values: dict[str, Any]) -> EngineConfig:
    """The configuration that the given options describe. Raises `ConfigError`."""
    return EngineConfig(**{name: value for name, value in values.items() if value is not None})
