"""How checkpoints store the weights of linears, a scheme each; `table` has the methods of `quantization_config`."""
