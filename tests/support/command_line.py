"""What command lines mean, without running them."""

from __future__ import annotations

from typing import Any

import click

from streamserve.commands.serve import serve, serve_options
from streamserve.server.process.options import ServeOptions


def parsed(command: click.Command, *arguments: str) -> dict[str, Any]:
    """A command's parameters."""
    with command.make_context(command.name, list(arguments)) as context:
        return dict(context.params)


def serve_options_of(*arguments: str) -> ServeOptions:
    """The options of a `streamserve serve`."""
    values = parsed(serve, *arguments)
    return serve_options(values.pop("model"), values)
