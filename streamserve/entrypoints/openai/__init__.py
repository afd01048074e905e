"""`python -m streamserve.entrypoints.openai.api_server`."""
