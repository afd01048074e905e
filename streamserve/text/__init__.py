"""Text to tokens and back, byte by byte."""
