"""Prints rows as they are measured, and keeps them in one JSON file, so that an interrupted run loses none."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any


class SuiteReport:
    """Collects rows by section and prints each at once, with the seconds since the start."""

    def __init__(self, path: Path | None, *, silent: bool = False) -> None:
        self._path = path
        self._silent = silent
        self._start_s = time.perf_counter()
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.failures = 0

    def add(self, section: str, **row: Any) -> None:
        self.rows.setdefault(section, []).append(row)
        if self._silent:
            return
        text = "  ".join(f"{name} {_short(value)}" for name, value in row.items())
        print(f"[{time.perf_counter() - self._start_s:6.1f}] {section:<10} {text}", flush=True)
        if self._path is not None:
            self._path.write_text(json.dumps(self.rows, indent=1))

    def check(self, section: str, error: float, limit: float, **row: Any) -> None:
        """A row that fails the run when its error is not below the limit."""
        passed = error < limit
        self.failures += not passed
        self.add(section, **row, error=error, verdict="ok" if passed else f"FAILED (limit {limit})")


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
