"""Rows, the device-resident state of running sequences: their tables (`tables`, without Triton), and updates of them."""
