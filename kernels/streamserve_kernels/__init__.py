"""Kernels for a paged KV cache: a torch reference that is the specification, and Triton on NVIDIA GPUs."""
