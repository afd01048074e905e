"""asyncio primitives: the wakeup and calls over a connection."""
