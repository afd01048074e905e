"""Batches: a file of requests in OpenAI's batch format, answered by a model in this process into a file of results."""
