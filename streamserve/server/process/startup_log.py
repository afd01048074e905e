"""The start-up log: what the operator of a server reads on standard error, from its start to the line that says it is ready.

Apart from `logs`, because further workers need no rich.
"""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape

from streamserve.process.error_stream import error_stream


class StartupLog:
    """Lines on standard error, each with the seconds since the start."""

    def __init__(self) -> None:
        self._console = Console(file=error_stream(), highlight=False, soft_wrap=True)
        self._started = time.perf_counter()

    def step(self, name: str, detail: str) -> None:
        """Log a step of the start-up that is done."""
        elapsed = time.perf_counter() - self._started
        self._console.print(f"[dim]{elapsed:6.1f} s[/dim]  [bold]{escape(name):<10}[/bold] {escape(detail)}")

    def ready(self, url: str) -> None:
        """Log that requests are taken from now on."""
        elapsed = time.perf_counter() - self._started
        self._console.print(f"[dim]{elapsed:6.1f} s[/dim]  [bold green]Ready:[/bold green] {escape(url)}")

    def note(self, text: str) -> None:
        """Log something the operator should know."""
        self._console.print(escape(text))

    def error(self, text: str) -> None:
        """Log what went wrong and what to do, in one line."""
        self._console.print(f"[bold red]error:[/bold red] {escape(text)}")
