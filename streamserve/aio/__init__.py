"""asyncio primitives that the engine, the library and the server share: a wakeup for one task, calls over a connection."""
