"""The environment variables that keys come from: those a server asks for, and those commands send to one."""

from __future__ import annotations

API_KEY_VARIABLES = ("STREAMSERVE_API_KEY", "VLLM_API_KEY")
"""Of these the first that is set counts; a server that came from vLLM must not stand open."""
