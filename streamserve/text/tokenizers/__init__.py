"""Text to token ids and back: tokenizers of transformers and of GGUF files, their vocabularies and bytes."""
