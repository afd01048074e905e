"""What the users of a load test send."""

from __future__ import annotations

SHORT = ("What is a monsoon?", "Name three rivers in Asia.", "描述一下北京的秋天", "Why is the sky blue?")
LONG_TEXT = "The harbour town kept a record of every ship, its cargo and the weather of the day. "
SHARED_PREFIX = f"You are the clerk of a harbour. {LONG_TEXT * 24}Answer briefly."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": description,
            "parameters": {"type": "object", "properties": {"ship": {"type": "string"}}, "required": ["ship"]},
        },
    }
    for name, description in (("find_ship", "Look a ship up in the register"), ("weather", "The weather when a ship came in"))
]
