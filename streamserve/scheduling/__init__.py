"""Who runs next, on which blocks. Pure Python: no torch, no anyio, no I/O; the time is an argument."""
