"""The chat page: static files that the server serves at `/`. Everything streams over one WebSocket to `/v1/ws`."""
