"""The engine: its loop, its streams, its two hosts."""
