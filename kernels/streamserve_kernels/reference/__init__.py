"""The kernels in plain torch: the specification every other implementation is tested against, and the CPU path."""
