"""Who may use a server: API keys and their tenants, the origins of web pages, CORS preflights."""
