"""How constrained JSON is laid out: as the model likes, within a bound."""

from __future__ import annotations

from typing import Any

JSON_STYLE: Any = {"whitespace_pattern": r"[ \t\n\r]{0,24}"}
"""llguidance's JSON options: white space between tokens. Unbounded, a model may emit nothing else for ever."""
