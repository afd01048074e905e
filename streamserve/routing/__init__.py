"""Which replica of a model a request goes to: the same code in a server, in Ray Serve and in a simulation."""
