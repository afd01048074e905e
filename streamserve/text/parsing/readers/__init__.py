"""Readers of the parts of an answer: its calls, their arguments, its reasoning, and channels."""
