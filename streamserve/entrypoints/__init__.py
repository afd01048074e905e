"""Modules to run under the names that vLLM gave them."""
