"""Checkpoints for tests that load no model."""

from __future__ import annotations

from pathlib import Path

from streamserve.checkpoint.files import Checkpoint


def no_weights() -> Checkpoint:
    """A checkpoint that nothing is read from."""
    return Checkpoint(source="scripted", path=Path("/"), format="dummy", config={})
