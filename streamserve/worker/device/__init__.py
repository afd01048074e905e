"""The device a rank computes on, its memory, and how numbers get there. One of the two places that know a GPU from a CPU."""
