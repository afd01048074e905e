"""The forms of weights, and how those of a checkpoint get into a model."""
