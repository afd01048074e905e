"""What `LLM` adds to `AsyncEngine`: vLLM's arguments, outputs put together, a progress bar."""
