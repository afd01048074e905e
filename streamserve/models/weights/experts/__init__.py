"""The forms in which a layer keeps the weights of its experts, a file each; `choose` has the table."""
