"""A model in this process, for the commands that use it from the terminal.

The main thread reads the keyboard and waits; the model's event loop is on a thread of its own. Ctrl-C while text is generated
ends that text, and its sequence within a step.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from rich.console import Console

from streamserve.async_engine import AsyncEngine, Generation
from streamserve.config import EngineConfig
from streamserve.offline.loop_thread import LoopThread
from streamserve.text.chat_template import ChatMessage
from streamserve.types import SamplingParams

_CONTROL_CHARACTERS = {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


class LocalModel:
    """A loaded model; made by `local_model`."""

    def __init__(self, engine: AsyncEngine, loop: LoopThread, output: TextIO) -> None:
        self._engine = engine
        self._loop = loop
        self._output = output

    def complete(self, prompt: str, sampling: dict[str, Any], *, stats: bool) -> str:
        """Write the continuation of `prompt` as it is generated; returns it."""
        return self._loop.call(self._write(self._engine.generate(prompt, self._params(sampling)), stats))

    def answer(self, messages: Sequence[ChatMessage], sampling: dict[str, Any], *, stats: bool) -> str:
        """Write the next message of a conversation as it is generated; returns it."""
        return self._loop.call(self._write(self._engine.chat(messages, self._params(sampling)), stats))

    def _params(self, sampling: dict[str, Any]) -> SamplingParams:
        changes = {name: value for name, value in sampling.items() if value is not None}
        return self._engine.default_sampling_params(**changes)

    async def _write(self, pending: Awaitable[Generation], stats: bool) -> str:
        started = time.perf_counter()
        first: float | None = None
        texts, tokens = [], 0
        with await pending as generation:
            async for delta in generation:
                first = first or time.perf_counter()
                tokens += len(delta.token_ids)
                texts.append(delta.text)
                self._show(delta.text)
        self._show("\n")
        if stats and first is not None:
            elapsed = time.perf_counter() - first
            rate = (tokens - 1) / elapsed if tokens > 1 else 0.0
            print(f"[{tokens} tokens, first after {(first - started) * 1000:.0f} ms, {rate:.1f} tokens/s]", file=sys.stderr)
        return "".join(texts)

    def _show(self, text: str) -> None:
        # A model's control characters must not reach a terminal.
        self._output.write(text.translate(_CONTROL_CHARACTERS) if self._output.isatty() else text)
        self._output.flush()


@contextmanager
def local_model(config: EngineConfig) -> Iterator[LocalModel]:
    """Load a model, and free it on exit. Raises `ConfigError` when it can't be loaded with this configuration."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    engine = AsyncEngine(config=config, tune_process=True)
    loop = LoopThread(engine.stop)
    try:
        with Console(stderr=True).status(f"Loading {config.model} …"):
            loop.call(engine.start())
        yield LocalModel(engine, loop, sys.stdout)
    finally:
        loop.close()
