"""HTTP and WebSocket server on Litestar: requests in, events out. Never imports torch, models or worker."""
