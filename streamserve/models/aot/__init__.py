"""Decoder layers on a CPU, compiled ahead of time by torch's own compiler (TorchInductor).

Called from Python one torch operation at a time, the work between a layer's four products is half of a decode step. Here a
layer is one call, products included. What is compiled is kept in a folder and loaded in milliseconds; without it the layers run
as they are.
"""
