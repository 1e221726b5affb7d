"""Compressing a dense ONNX model: its weights become hashed, by least squares alone or by distillation."""

from hashinfer.compress.run import Options, Report, compress

__all__ = ["Options", "Report", "compress"]
