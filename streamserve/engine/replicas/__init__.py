"""Several engines that serve the same model, as one: requests are routed among them, and streams outlive each of them."""
