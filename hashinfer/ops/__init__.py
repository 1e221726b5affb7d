"""Ops: thin wrappers that give standard ONNX nodes their types and run NumPy functions or kernels for them."""
