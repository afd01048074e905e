"""Kernels against their specification."""
