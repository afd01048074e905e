"""The engine in a process of its own: its start, its program, and what keeps it running."""
