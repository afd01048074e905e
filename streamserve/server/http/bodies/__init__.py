"""Bodies of requests: how much memory they hold, how their JSON becomes a struct, and what is done off the event loop."""
