"""HTTP: the listening socket, uvicorn's protocol and server, authentication, CORS preflights, the chat page, errors."""
