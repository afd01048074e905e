"""How a plan reaches the ranks that run it: a thread of this process, or a group of processes."""
