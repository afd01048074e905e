"""What `scaling_simulation.py` runs: replicas as servers of batched steps, the router before them, and what clients send."""
