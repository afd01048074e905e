"""Sampling of the next token: its parameters on the device (`tensors`, without Triton), and kernels that choose."""
