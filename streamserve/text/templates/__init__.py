"""Parts of chat templates: the sandbox they run in, what they ask of messages, and messages in the form they expect."""
