"""From one generation to the bytes of its answer."""
