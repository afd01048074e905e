"""Sums and gathers among GPUs of one host through memory that they map: where it is (`slots`, without Triton), and kernels."""
