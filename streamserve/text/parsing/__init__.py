"""Parsers of chat answers: text in, pieces of content, reasoning and tool calls out, incrementally."""
