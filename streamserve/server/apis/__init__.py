"""One folder per API: its schema, its script of events, its routes."""
