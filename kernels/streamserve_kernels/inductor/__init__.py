"""The small work of a decoder layer on a CPU, compiled ahead of time by torch's own compiler (TorchInductor).

Called from Python one torch operation at a time, that work is half of a decode step. Here it is three calls a layer beside the
four linears. What is compiled is kept in a folder and loaded in milliseconds; without it the references do the same.
"""
