"""The other API workers of a server: control messages and forwarded requests."""
