"""Hashed layers in place of a model's dense ones."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from hashinfer.errors import SchemeError
from hashinfer.schemes import scheme_named
from hashinfer.schemes.base import MAX_BUCKETS, MAX_SEED, check_range
from hashinfer.torch.layers import (
    DEFAULT_COMPRESSION,
    HashedConv2d,
    HashedEmbedding,
    HashedEmbeddingBag,
    HashedLinear,
    HashedModule,
)

INITS = ("random", "weights")
MIN_SIZE = 1024


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
    if not (math.isfinite(compression) and compression > 0):
        raise SchemeError(f"compression is {compression!r}; expected a finite number above 0")
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
        options: dict[str, Any] = {
            "compression": compression,
            "seed": (seed + len(twins)) % (MAX_SEED + 1),
            "block": block,
            "cache_indices": cache_indices,
            "device": module.weight.device,
            "dtype": module.weight.dtype,
        }
        twin = _twin(module, scheme, options)
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
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) in (nn.Linear, nn.Conv2d):
        return True
    if type(module) is nn.Embedding or type(module) is nn.EmbeddingBag:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    return False


def _twin(module: nn.Module, scheme: str, options: dict[str, Any]) -> HashedModule:
    lookup = {k: v for k, v in options.items() if k != "scheme"}
    product = dict(options, scheme=scheme, block=options["block"] if scheme != "dyadic" else 1)
    if isinstance(module, nn.Linear):
        return HashedLinear(module.in_features, module.out_features, module.bias is not None, **product)
    if isinstance(module, nn.Conv2d):
        return HashedConv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            module.padding,  # type: ignore[arg-type]
            module.dilation,  # type: ignore[arg-type]
            module.groups,
            module.bias is not None,
            module.padding_mode,
            **product,
        )
    if isinstance(module, nn.EmbeddingBag):
        return HashedEmbeddingBag(
            module.num_embeddings,
            module.embedding_dim,
            module.mode,
            module.padding_idx,
            module.include_last_offset,
            **lookup,
        )
    assert isinstance(module, nn.Embedding)  # noqa: S101
    return HashedEmbedding(module.num_embeddings, module.embedding_dim, module.padding_idx, **lookup)


@torch.no_grad()
def _take_weights(twin: HashedModule, module: nn.Module) -> None:
    weight: Tensor = module.weight  # type: ignore[assignment]
    matrix = weight if isinstance(twin, HashedEmbedding) else weight.reshape(len(weight), -1).t()
    twin.fit_weight(matrix, keep_norm=True)
    if getattr(module, "bias", None) is not None:
        twin.bias.copy_(module.bias)  # type: ignore[operator, arg-type]
