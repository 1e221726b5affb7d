"""Hashed layers in place of a model's dense ones."""

import warnings
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from hashinfer.schemes import scheme_named
from hashinfer.schemes.base import MAX_BUCKETS, MAX_SEED, check_range
from hashinfer.torch.layers import (
    DEFAULT_COMPRESSION,
    HashedConv2d,
    HashedEmbedding,
    HashedEmbeddingBag,
    HashedLinear,
    HashedModule,
    HashedWithBias,
    check_compression,
)

INITS = ("random", "weights")
MIN_SIZE = 1024

_TABLE = ("num_embeddings", "embedding_dim")
_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
TWINS: dict[type[nn.Module], tuple[type[HashedModule], tuple[str, ...]]] = {
    nn.Linear: (HashedLinear, ("in_features", "out_features")),
    nn.Conv2d: (HashedConv2d, _CONVOLUTION),
    nn.Embedding: (HashedEmbedding, (*_TABLE, "padding_idx")),
    nn.EmbeddingBag: (HashedEmbeddingBag, (*_TABLE, "mode", "padding_idx", "include_last_offset")),
}
"""For each dense layer the hashed one in its place, and the arguments that it takes from the dense one's attributes."""


def hash_module(
    model: nn.Module,
    compression: float = DEFAULT_COMPRESSION,
    scheme: str = "dyadic",
    *,
    init: str = "random",
    layers: Sequence[str] = (),
    min_size: int = MIN_SIZE,
    seed: int = 0,
    block: int = 1,
    cache_indices: bool = False,
) -> nn.Module:
    """Swap the Linear, Conv2d, Embedding and EmbeddingBag layers of `model` for hashed ones, in place; returns it.

    Each gets floor(weights / compression) buckets at most; embeddings are of scheme "xxh32" always. A module used in
    several places stays one. Devices, dtypes, training modes and biases' presence stay.
    init: "random", as new layers are, or "weights": the least-squares weight vectors of the present weights, at those
    weights' norm, and the present biases. At a compression of 64 little of a net's skill survives that; it is a start
    for training. layers: globs over the modules' names ("encoder.*.linear1"); without any, all are swapped.
    min_size: layers of fewer weights stay dense. Seeds count up from `seed`.
    Left as they are: subclasses of those layers (out_proj of MultiheadAttention is one), layers with forward hooks,
    lookups with max_norm or another feature that a virtual table lacks, and, with a UserWarning, weights that other
    modules share. If `model` itself is such a layer, its hashed twin is returned.
    Raises SchemeError for a scheme, compression, seed or block out of range; ValueError for another init, and for a
    glob that matches no layer.
    """
    if init not in INITS:
        raise ValueError(f"init is {init!r}; expected one of {', '.join(INITS)}")
    check_compression(compression)
    scheme_named(scheme)
    check_range("seed", seed, 0, MAX_SEED)
    check_range("block", block, 1, MAX_BUCKETS)
    shared = Counter(id(p) for m in set(model.modules()) for p in m.parameters(recurse=False))
    found = {name: m for name, m in model.named_modules(remove_duplicate=True) if _swappable(m)}
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(f"layers {pattern!r} matches none; there are {', '.join(map(repr, found)) or 'none'}")
    twins: dict[int, nn.Module] = {}
    for name, module in found.items():
        size = module.weight.numel()
        if layers and not any(fnmatchcase(name, pattern) for pattern in layers):
            continue
        if size < min_size or size < compression:
            continue
        if shared[id(module.weight)] > 1:
            warnings.warn(f"{name}.weight is shared with another module: it stays dense", UserWarning, stacklevel=2)
            continue
        twin = _twin(
            module,
            scheme,
            compression=compression,
            seed=(seed + len(twins)) % (MAX_SEED + 1),
            block=block,
            cache_indices=cache_indices,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )
        if init == "weights":
            _take_weights(twin, module)
        twins[id(module)] = twin.train(module.training)
    if id(model) in twins:
        return twins[id(model)]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in twins:
                parent._modules[name] = twins[id(child)]
    return model


def _swappable(module: nn.Module) -> bool:
    if type(module) not in TWINS or module._forward_hooks or module._forward_pre_hooks:
        return False
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return True


def _twin(module: nn.Module, scheme: str, **options: Any) -> HashedModule:
    kind, attributes = TWINS[type(module)]
    if issubclass(kind, HashedWithBias):
        options |= {"bias": module.bias is not None, "scheme": scheme}
        options["block"] = 1 if scheme == "dyadic" else options["block"]
    return kind(**options, **{name: getattr(module, name) for name in attributes})


@torch.no_grad()
def _take_weights(twin: HashedModule, module: nn.Module) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    matrix = weight if isinstance(twin, HashedEmbedding) else weight.reshape(len(weight), -1).t()
    twin.fit_weight(matrix, keep_norm=True)
    if getattr(module, "bias", None) is not None:
        twin.bias.copy_(module.bias)  # type: ignore[operator, arg-type]
