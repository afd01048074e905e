"""From a plan to sampling parameters, and from sampled tensors to results."""
