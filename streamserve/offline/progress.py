"""The progress bar of offline generation: prompts done, tokens per second.

Draws on standard error. Knows nothing of requests.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar


class Progress:
    """Counts prompts and tokens, and shows them unless `shown` is False.

    num_prompt_tokens  of all prompts together
    """

    def __init__(self, num_prompts: int, num_prompt_tokens: int, *, shown: bool) -> None:
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("in {task.fields[prompt_rate]:.0f} tok/s, out {task.fields[output_rate]:.0f} tok/s"),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task("Generating", total=num_prompts, prompt_rate=0.0, output_rate=0.0)
        self._num_prompts = num_prompts
        self._num_prompt_tokens = num_prompt_tokens
        self._num_done = 0
        self._num_tokens = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._show()
        self._bar.stop()

    def advance(self, num_tokens: int, *, finished: int) -> None:
        """Count `num_tokens` more tokens and `finished` more prompts."""
        self._num_tokens += num_tokens
        if finished:
            self._num_done += finished
            self._show()

    def _show(self) -> None:
        elapsed_s = max(time.monotonic() - self._started, 1e-9)
        self._bar.update(
            self._task,
            completed=self._num_done,
            prompt_rate=self._num_prompt_tokens * self._num_done / max(self._num_prompts, 1) / elapsed_s,
            output_rate=self._num_tokens / elapsed_s,
        )
