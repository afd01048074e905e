"""Models whose layers are transformers' own: its modules, over our cache, in our step."""
