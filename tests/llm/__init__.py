"""The library: Frontend, AsyncEngine and LLM."""
