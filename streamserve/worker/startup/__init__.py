"""What a rank does once, before its first step: settings, kernels, memory."""
