"""The step loop, the streams its tokens leave by, and the process and socket that a server reaches it through."""
