"""`api_server` and `run_batch`, to run with `python -m`."""
