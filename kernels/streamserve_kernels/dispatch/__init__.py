"""The public operations: each call runs the torch reference or Triton, by the device of its tensors.

Triton is imported for the first tensor that is not on the CPU, so a CPU machine does not need it. Shapes and dtypes are
specified in the docstrings of the references, which both implementations fulfil.
"""
