"""Linear layers in Triton: products with dense weights, with 8-bit floats and with 4-bit integers, and what is fused with them.

`dense` has the products of dense weights, `quantized` those of all others; each kind of weight is a file that says which kernel
multiplies how many rows.
"""
