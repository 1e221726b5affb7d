"""W from a weight vector, as differentiable PyTorch operators: hashinfer::expand_dyadic and hashinfer::expand_xxh32.

Both are linear maps. The gradient of each is its transpose, hashinfer::fold_dyadic and hashinfer::fold_xxh32, whose
gradient is the expansion again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hashinfer.schemes import Dyadic, Scheme, Xxh32

INDEX_CACHE_BYTES = 256 << 20
_BLOCK_CELLS = 1 << 18
_LOW_PRECISION = (torch.float16, torch.bfloat16)


class IndexCache:
    """Index tensors of the schemes last used, in at most `limit` bytes; a larger index is built at each use.

    The index of a scheme is int32 [rows * cols]: bucket where the sign of a cell is +1, bucket + K where it is -1.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[tuple[Scheme, torch.device], Tensor] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The bytes of all index tensors held."""
        return sum(index.nbytes for index in self._held.values())

    def clear(self) -> None:
        """Forget every index."""
        with self._lock:
            self._held.clear()

    def get(self, scheme: Scheme, device: torch.device) -> Tensor:
        """The index of `scheme` on `device`."""
        key = (scheme, device)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        index = _signed_index(scheme).to(device)
        with self._lock:
            self._held[key] = index
            self._held.move_to_end(key)
            total = self.nbytes
            while total > self.limit:
                total -= self._held.popitem(last=False)[1].nbytes
        return index


def _signed_index(scheme: Scheme) -> Tensor:
    index = np.empty((scheme.rows, scheme.cols), np.int32)
    rows = max(1, _BLOCK_CELLS // scheme.cols)
    cols = np.arange(scheme.cols)[None, :]
    for start in range(0, scheme.rows, rows):
        stop = min(start + rows, scheme.rows)
        bucket, sign = scheme.cells(np.arange(start, stop)[:, None], cols)
        np.add(bucket, np.where(sign < 0, scheme.buckets, 0), out=index[start:stop], casting="same_kind")
    return torch.from_numpy(index.reshape(-1))


index_cache = IndexCache(INDEX_CACHE_BYTES)


def _gather(w: Tensor, scheme: Scheme) -> Tensor:
    index = index_cache.get(scheme, w.device)
    return torch.cat([w, -w]).index_select(0, index).view(scheme.rows, scheme.cols)


def _sum_buckets(grad: Tensor, scheme: Scheme) -> Tensor:
    index = index_cache.get(scheme, grad.device)
    # Thousands of terms meet in a bucket: half precision would lose most of them.
    wide = torch.float32 if grad.dtype in _LOW_PRECISION else grad.dtype
    sums = torch.zeros(2 * scheme.buckets, dtype=wide, device=grad.device)
    sums.index_add_(0, index, grad.reshape(-1).to(wide))
    return (sums[: scheme.buckets] - sums[scheme.buckets :]).to(grad.dtype)


def _define(kind: str, parameter: str, make: Callable[[int, int, int, int, int], Scheme]) -> tuple[Any, Any]:
    """Register the operators expand_<kind> and fold_<kind>, each with the other as its gradient."""
    expand_schema = f"(Tensor w, int seed, int rows, int cols, int {parameter}) -> Tensor"
    fold_schema = f"(Tensor grad, int buckets, int seed, int {parameter}) -> Tensor"

    @torch.library.custom_op(f"hashinfer::expand_{kind}", mutates_args=(), schema=expand_schema)
    def expand(w: Tensor, seed: int, rows: int, cols: int, parameter: int) -> Tensor:
        return _gather(w, make(w.shape[0], rows, cols, seed, parameter))

    @torch.library.custom_op(f"hashinfer::fold_{kind}", mutates_args=(), schema=fold_schema)
    def fold(grad: Tensor, buckets: int, seed: int, parameter: int) -> Tensor:
        rows, cols = grad.shape
        return _sum_buckets(grad, make(buckets, rows, cols, seed, parameter))

    @expand.register_fake
    def _(w: Tensor, seed: int, rows: int, cols: int, parameter: int) -> Tensor:  # noqa: ARG001
        return w.new_empty(rows, cols)

    @fold.register_fake
    def _(grad: Tensor, buckets: int, seed: int, parameter: int) -> Tensor:  # noqa: ARG001
        return grad.new_empty(buckets)

    def expand_setup(ctx: Any, inputs: tuple[Tensor, int, int, int, int], output: Tensor) -> None:  # noqa: ARG001
        w, ctx.seed, _, _, ctx.parameter = inputs
        ctx.buckets = w.shape[0]

    def expand_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return fold(grad, ctx.buckets, ctx.seed, ctx.parameter), None, None, None, None

    def fold_setup(ctx: Any, inputs: tuple[Tensor, int, int, int], output: Tensor) -> None:  # noqa: ARG001
        grad, _, ctx.seed, ctx.parameter = inputs
        ctx.rows, ctx.cols = grad.shape

    def fold_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return expand(grad, ctx.seed, ctx.rows, ctx.cols, ctx.parameter), None, None, None

    expand.register_autograd(expand_backward, setup_context=expand_setup)
    fold.register_autograd(fold_backward, setup_context=fold_setup)
    return expand, fold


expand_dyadic, fold_dyadic = _define(Dyadic.name, Dyadic.parameter, Dyadic)
expand_xxh32, fold_xxh32 = _define(Xxh32.name, Xxh32.parameter, Xxh32)

_EXPAND = {Dyadic.name: expand_dyadic, Xxh32.name: expand_xxh32}


def expand(w: Tensor, scheme: Scheme) -> Tensor:
    """W [rows, cols] of `scheme` from the weight vector `w` [buckets], in w's dtype, on w's device; differentiable.

    Raises SchemeError if `w` does not fit the scheme's parameter.
    """
    parameter = scheme.attributes()[scheme.parameter]
    out: Tensor = _EXPAND[scheme.name](w, scheme.seed, scheme.rows, scheme.cols, parameter)
    return out
