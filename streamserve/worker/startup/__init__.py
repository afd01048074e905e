"""What a rank does once: memory, dtype, kernels compiled, the rehearsal."""
