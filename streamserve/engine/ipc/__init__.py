"""The engine socket: frames, both ends of a connection, and the calls over it."""
