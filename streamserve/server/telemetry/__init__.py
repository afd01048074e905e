"""Metrics, traces, and what a request costs."""
