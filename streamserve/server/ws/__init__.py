"""Many streams over one WebSocket: docs/WEBSOCKET.md is the protocol."""
