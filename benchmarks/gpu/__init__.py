"""What `gpu_suite.py` runs: kernel checks, kernel timings, and the engine's figures."""
