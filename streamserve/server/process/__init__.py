"""The processes of one server: start, serve, drain, end."""
