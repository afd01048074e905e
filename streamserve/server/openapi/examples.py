"""What several examples of requests ask."""

from __future__ import annotations

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
