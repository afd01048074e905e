"""OpenAI's Responses API: one object per answer, kept for a while, streamed as events over SSE and WebSockets alike."""
