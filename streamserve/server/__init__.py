"""OpenAI's HTTP API on Litestar: requests in, frames out. Never imports torch, models or worker."""
