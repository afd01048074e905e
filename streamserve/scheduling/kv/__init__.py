"""The KV memory of sequences: blocks, the prefix cache, and both behind four verbs."""
