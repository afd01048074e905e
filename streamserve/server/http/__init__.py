"""HTTP: connections, who may use them, bodies of requests, errors, and the chat page."""
