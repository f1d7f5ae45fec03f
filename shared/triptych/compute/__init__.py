"""What computes: the one thread, kernels, devices, and how weights are loaded, quantized and compiled."""
