"""One rank: a device, its rows, its KV cache, and the step that runs on them."""
