"""The Python face: sessions that answer as onnxruntime's do."""
