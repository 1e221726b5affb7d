"""From a checked graph to something that runs: fused steps, then a plan of buffers and kernels for input shapes."""
