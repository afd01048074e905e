"""What a chat or completion request asks for: its struct, checked, as parameters, messages and tools."""
