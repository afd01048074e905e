"""Rows of running sequences: their state on the device, and a step's inputs gathered from it."""
