"""Anthropic's Messages API: /v1/messages and what hangs below it."""
