"""The file format: reading an .hnet (or any ONNX model) into a small checked graph, and writing one."""
