"""Model families: their layers, and how each reads its config.json."""
