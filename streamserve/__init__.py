"""streamserve: run open-weight language models and stream them.

Names are imported on first use, so that `import streamserve` loads neither torch nor a server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamserve.async_engine import AsyncEngine
    from streamserve.llm import LLM
    from streamserve.types import (
        CompletionOutput,
        EmbeddingRequestOutput,
        PoolingParams,
        RequestOutput,
        SamplingParams,
        StructuredOutputs,
    )

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "AsyncEngine",
    "CompletionOutput",
    "EmbeddingRequestOutput",
    "PoolingParams",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputs",
    "__version__",
]

_MODULES = {
    "AsyncEngine": "streamserve.async_engine",
    "LLM": "streamserve.llm",
    "CompletionOutput": "streamserve.types",
    "EmbeddingRequestOutput": "streamserve.types",
    "PoolingParams": "streamserve.types",
    "RequestOutput": "streamserve.types",
    "SamplingParams": "streamserve.types",
    "StructuredOutputs": "streamserve.types",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'streamserve' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
