"""The chat page in headless Chromium, before a real server."""
