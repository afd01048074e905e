"""The other API workers of a server: the control connection, calls about requests, forwarding."""
