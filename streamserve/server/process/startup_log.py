"""The start of a server as its operator reads it: what happened when, and at last the line that says it is ready."""

from __future__ import annotations

import time

from rich.console import Console
from rich.markup import escape


class Timeline:
    """Lines on standard error, each with the seconds since the start."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._started = time.perf_counter()

    def step(self, name: str, detail: str) -> None:
        """Something that start-up has achieved."""
        elapsed = time.perf_counter() - self._started
        self._console.print(f"[dim]{elapsed:6.1f} s[/dim]  [bold]{escape(name):<10}[/bold] {escape(detail)}")

    def ready(self, url: str) -> None:
        """Requests are taken from now on."""
        elapsed = time.perf_counter() - self._started
        self._console.print(f"[dim]{elapsed:6.1f} s[/dim]  [bold green]Ready:[/bold green] {escape(url)}")

    def note(self, text: str) -> None:
        """Something the operator should know."""
        self._console.print(escape(text))

    def error(self, text: str) -> None:
        """What went wrong and what to do, in one line."""
        self._console.print(f"[bold red]error:[/bold red] {escape(text)}")
