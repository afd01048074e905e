"""Many streams over one WebSocket: docs/WEBSOCKET.md says what is spoken. Knows nothing of how events are made."""
