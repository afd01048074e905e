"""Many streams over one WebSocket: docs/WEBSOCKET.md says what is spoken. `creation` makes the streams of the superset."""
