"""Rows, inputs, sampling and steps of one rank, on a CPU."""
