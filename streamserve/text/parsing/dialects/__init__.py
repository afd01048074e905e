"""Dialects: how models write calls and reasoning, and which of them a checkpoint speaks."""
