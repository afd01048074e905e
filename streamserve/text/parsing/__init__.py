"""What a chat model's text means: reasoning, tool calls, and the rest. Pure text in, pieces out, as they come."""
