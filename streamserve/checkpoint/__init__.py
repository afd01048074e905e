"""A model's name to its files, config and end-of-sequence ids; GGUF headers."""
