"""uvicorn's protocol and server, authentication, CORS preflights, the chat page, errors."""
