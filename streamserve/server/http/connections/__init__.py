"""Connections: where the server listens, uvicorn's server and protocol, and the rules that a request's head must keep."""
