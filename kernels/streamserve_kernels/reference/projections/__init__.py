"""Linear layers in torch: dense weights, each kind of quantized weight, and what is fused with them."""
