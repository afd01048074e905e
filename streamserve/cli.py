"""`streamserve`: serve | generate | chat | run-batch | models | compile | collect-env | bench, from a terminal or a script.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 Ctrl-C. An error is one line that says what to do. Commands are imported when
called, so that `streamserve --help` loads neither torch nor a server.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from streamserve.errors import ConfigError, StreamserveError
from streamserve.process.bytecode import keep_bytecode
from streamserve.process.error_stream import open_standard_descriptors

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_COMMANDS = {
    "serve": ("streamserve.commands.serve:serve", "Serve a model over HTTP with OpenAI's API."),
    "generate": ("streamserve.commands.generate:generate", "Continue a prompt, streaming to the terminal."),
    "chat": ("streamserve.commands.chat:chat", "Talk to a model in the terminal."),
    "run-batch": ("streamserve.commands.run_batch:run_batch_command", "Answer a file of requests without a server."),
    "models": ("streamserve.commands.models:models", "List the families of models that run."),
    "compile": ("streamserve.commands.compile:compile_layers", "Compile a model's layers for this CPU, once."),
    "collect-env": ("streamserve.commands.collect_env:collect_env", "Describe this machine, for a report."),
    "bench": ("streamserve.bench.commands:bench", "Measure latency, throughput and serving."),
}


class LazyGroup(click.Group):
    """A group that holds the names and summaries of its commands, and imports a command when it is called."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streamserve")
def cli() -> None:
    """Run open-weight language models and stream them."""


def main(arguments: list[str] | None = None) -> Any:
    """Entry point: run the command and exit with its code."""
    open_standard_descriptors()
    keep_bytecode()
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run a command line and return its exit code; an error is one line on standard error."""
    try:
        result = cli.main(arguments, prog_name="streamserve", standalone_mode=False)
    except click.exceptions.Exit as exit:
        return exit.exit_code
    except click.ClickException as error:
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except StreamserveError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return EXIT_USAGE if type(error) is ConfigError else EXIT_FAILED
    except Exception as error:
        # An import that Ctrl-C cut off fails again, and in another way, when the way out needs it.
        if _was_interrupted(error):
            return EXIT_INTERRUPTED
        raise
    return result if isinstance(result, int) else 0


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether the error came up while Ctrl-C unwound the program."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False


def _one_line(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx is not None else None
    return f"{text.rstrip('.')} (see {command} --help)" if command else text
