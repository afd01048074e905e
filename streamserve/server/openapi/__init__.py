"""/openapi.json."""
