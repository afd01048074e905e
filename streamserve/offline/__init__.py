"""The parts of `LLM`: vLLM's arguments, an event loop on a thread, complete outputs, a progress bar."""
