"""A command that is typed as vLLM's are: their spellings, their flags, settings from outside, and help in groups.

Flags of vLLM are options here, or describe what happens anyway, or are refused by name, in one line (`docs/FLAGS.md`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from streamserve.commands.outer_settings import OuterValue, from_environment, from_file, from_mapping, unknown_variables
from streamserve.commands.vllm_flags import without_vllm_flags
from streamserve.errors import ConfigError

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

CONFIG = "--config"


class VllmOption(click.Option):
    """An option that `--no-…` turns off if it is a flag, as each of vLLM's.

    group          the heading that help lists it under
    shown_default  what help says of an option whose default is not its own
    """

    def __init__(self, *args: Any, group: str, shown_default: str = "", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.group = group
        self.shown_default = shown_default
        self._is_written_in_pairs = bool(self.secondary_opts)
        if self.is_bool_flag and not self.secondary_opts:
            self.secondary_opts = [f"--no-{name[2:]}" for name in self.opts if name.startswith("--")]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        if self._is_written_in_pairs or not self.secondary_opts:
            return super().get_help_record(ctx)
        hidden, self.secondary_opts = self.secondary_opts, []
        try:
            return super().get_help_record(ctx)
        finally:
            self.secondary_opts = hidden

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        if self.is_bool_flag:
            extra.pop("default", None)
        if self.shown_default:
            extra.setdefault("default", self.shown_default)
        return extra


def option(group: str, *names: str, **attributes: Any) -> Callable[[CommandT], CommandT]:
    """`click.option` of a `VllmOption`."""
    return click.option(*names, cls=VllmOption, group=group, **attributes)


class VllmCommand(click.Command):
    """A command whose options come from its command line, the environment and, where it has --config, a file.

    lists            options that take all values up to the next flag
    has_all_options  what another command may be told by the environment is among them, so that it names unlike variables, too
    """

    def __init__(self, *args: Any, lists: tuple[str, ...] = (), has_all_options: bool = False, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._has_all_options = has_all_options
        self.context_settings["show_default"] = True
        self._lists = lists

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = self.options_by_spelling()
        args = without_vllm_flags([_dashed(argument) for argument in args], options)
        outer = self._outer_values(args, options)
        for unknown in unknown_variables(options):
            if self._has_all_options or unknown.nearest is not None:
                click.echo(f"warning: {unknown}", err=True)
        ctx.default_map = {name: outer_value.value for name, outer_value in outer.items()}
        try:
            rest = super().parse_args(ctx, self._one_value_each(args))
        except click.BadParameter as error:
            raise _with_source(error, ctx, outer) from error
        _prefer_argument(ctx)
        return rest

    def values_of(self, settings: Mapping[str, Any], source: str) -> dict[str, Any]:
        """The parameters of a call with these settings, named as in a configuration file, and no command line.

        source  what to call the settings in an error

        Raises `ConfigError`.
        """
        ctx = click.Context(self, info_name=self.name)
        values = from_mapping(settings, self.options_by_spelling(), source)
        ctx.default_map = {name: value.value for name, value in values.items()}
        try:
            super().parse_args(ctx, [])
        except click.UsageError as error:
            raise ConfigError(f"{source}: {error.format_message()}") from error
        return ctx.params

    def options_by_spelling(self) -> dict[str, click.Option]:
        """The command's options by each of their spellings, `--no-…` included."""
        options = [option for option in self.params if isinstance(option, click.Option)]
        return {name: option for option in options for name in (*option.opts, *option.secondary_opts)}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        for each in sorted(options, key=lambda each: not isinstance(each, VllmOption)):
            if (record := each.get_help_record(ctx)) is not None:
                groups.setdefault(each.group if isinstance(each, VllmOption) else "Options", []).append(record)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)

    def _outer_values(self, args: list[str], options: dict[str, click.Option]) -> dict[str, OuterValue]:
        environment = from_environment(options)
        if CONFIG not in options:
            return environment
        file = _value_of(CONFIG, args) or (environment["config"].value if "config" in environment else None)
        return {**({} if file is None else from_file(file, options)), **environment}

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


def _value_of(flag: str, args: list[str]) -> str | None:
    """The last value of a flag on a command line."""
    found = None
    for place, argument in enumerate(args):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else next(iter(args[place + 1 :]), None)
    return found


def _with_source(error: click.BadParameter, ctx: click.Context, outer: dict[str, OuterValue]) -> click.BadParameter:
    """The error, with the name of where a value from outside came from."""
    name = None if error.param is None else error.param.name
    if name not in outer or ctx.get_parameter_source(name) is not ParameterSource.DEFAULT_MAP:
        return error
    return click.BadParameter(f"{error.message} (from {outer[name].source})", ctx, error.param)


def _prefer_argument(ctx: click.Context) -> None:
    """The model that is named on the command line counts, not one from outside."""
    if ctx.params.get("model") is not None and ctx.get_parameter_source("model_flag") is ParameterSource.DEFAULT_MAP:
        ctx.params["model_flag"] = None
