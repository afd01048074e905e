"""The text room: tokenizers, detokenizing, stop strings, chat templates, preparation, grammars."""
