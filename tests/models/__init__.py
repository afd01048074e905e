"""Architectures against transformers, loading, and rotations."""
