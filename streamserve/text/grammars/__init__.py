"""Languages that answers are confined to: written in Lark, compiled, and turned into masks of allowed tokens."""
