"""Hashed layers for PyTorch, and their way into an .hnet file. Needs the extra: pip install 'hashinfer[torch]'."""

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise ImportError("hashinfer.torch needs PyTorch: pip install 'hashinfer[torch]'") from error

from hashinfer.torch.convert import hash_module
from hashinfer.torch.export import save
from hashinfer.torch.layers import HashedConv2d, HashedEmbedding, HashedEmbeddingBag, HashedLinear
from hashinfer.torch.losses import distillation_loss

__all__ = [
    "HashedConv2d",
    "HashedEmbedding",
    "HashedEmbeddingBag",
    "HashedLinear",
    "distillation_loss",
    "hash_module",
    "save",
]
