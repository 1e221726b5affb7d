"""Hashed layers for PyTorch, and their way into an .hnet file. Needs the extra: pip install 'hashinfer[torch]'."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("hashinfer.torch needs PyTorch: pip install 'hashinfer[torch]'") from error

from hashinfer.torch.export import save
from hashinfer.torch.layers import HashedConv2d, HashedEmbedding, HashedLinear

__all__ = ["HashedConv2d", "HashedEmbedding", "HashedLinear", "save"]
