"""Bodies that no client would send, over a real socket: every answer is one of OpenAI's, and nothing is left behind."""
