"""Tokenizers, detokenizing, stop strings, chat templates and grammars: everything between text and tokens."""
