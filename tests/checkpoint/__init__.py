"""Finding models and reading their configurations."""
