"""A server over a cluster: engines and API workers as deployments of Ray Serve."""
