"""W from a weight vector, as differentiable PyTorch operators: hashinfer::expand_dyadic and hashinfer::expand_xxh32.

Both are linear maps. The gradient of each is its transpose, hashinfer::fold_dyadic and hashinfer::fold_xxh32, whose
gradient is the expansion again. No index as large as W outlives a call: dyadic needs only an XOR of two short
vectors, xxh32 hashes anew each time, unless a layer asks for its index to be kept (`index_cache`).
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hashinfer.kernels import training
from hashinfer.kernels.driver import callable_from_python
from hashinfer.kernels.jit import Kernel
from hashinfer.schemes import Dyadic, Scheme, Xxh32

INDEX_CACHE_BYTES = 256 << 20


class IndexCache:
    """Index tensors of the xxh32 schemes that asked to be kept and were used last, in at most `limit` bytes.

    The index of a scheme is int32 [rows * cols]: bucket where the sign of a cell is +1, bucket + K where it is -1.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: OrderedDict[tuple[Scheme, torch.device], Tensor] = OrderedDict()
        self._wanted: set[Scheme] = set()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """The bytes of all index tensors held."""
        return sum(index.nbytes for index in self._held.values())

    def keep(self, scheme: Scheme) -> None:
        """From now on hold the index of `scheme` between calls, while there is room."""
        self._wanted.add(scheme)

    def clear(self) -> None:
        """Forget every index, and which ones were to be kept."""
        with self._lock:
            self._held.clear()
            self._wanted.clear()

    def get(self, scheme: Xxh32, device: torch.device) -> Tensor:
        """The index of `scheme` on `device`, held afterwards only if `keep` was called for it."""
        key = (scheme, device)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
        index = cell_index(scheme, torch.arange(scheme.rows)).to(device)
        if scheme in self._wanted:
            with self._lock:
                self._held[key] = index
                self._held.move_to_end(key)
                while self.nbytes > self.limit:
                    self._held.popitem(last=False)
        return index


def cell_index(scheme: Xxh32, rows: Tensor) -> Tensor:
    """The index, int32 [rows.numel() * cols] on the CPU, of some rows of W: bucket, plus K where the sign is -1.

    rows: whole numbers, each from 0 to scheme.rows - 1.
    """
    ids = rows.cpu().long().reshape(-1).contiguous()
    out = torch.empty(len(ids) * scheme.cols, dtype=torch.int32)
    run_kernel(training.xxh32_cells, ids, len(ids), scheme.cols, scheme.buckets, scheme.seed, scheme.block, out)
    return out


def run_kernel(kernel: Kernel, *arguments: Tensor | int) -> None:
    """Run a kernel, tensors on the CPU being passed by their addresses."""
    callable_from_python(kernel)(*(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))


index_cache = IndexCache(INDEX_CACHE_BYTES)


class DyadicVectors(NamedTuple):
    """What a dyadic scheme is made of: perm(t), int64 [ceil(cols / G)]; s(i), int8 [rows]; r(j), int8 [cols]."""

    perm: Tensor
    row_sign: Tensor
    col_sign: Tensor


@lru_cache(maxsize=256)
def dyadic_vectors(scheme: Dyadic, device: torch.device) -> DyadicVectors:
    """The vectors of `scheme` on `device`: rows + 2 cols numbers at most."""
    t = np.arange(-(-scheme.cols // scheme.groups), dtype=np.uint64)
    rows, cols = np.arange(scheme.rows, dtype=np.uint64), np.arange(scheme.cols, dtype=np.uint64)
    perm = np.asarray(scheme.permute(t)).astype(np.int64)
    row_sign = 1 - 2 * np.asarray(scheme.row_negative(rows)).astype(np.int8)
    col_sign = 1 - 2 * np.asarray(scheme.col_negative(cols)).astype(np.int8)
    return DyadicVectors(*(torch.from_numpy(v).to(device) for v in (perm, row_sign, col_sign)))


def _expand_dyadic(w: Tensor, scheme: Dyadic) -> Tensor:
    # Cells of a row whose columns share t are neighbours in w seen as [width, G].
    perm, row_sign, col_sign = dyadic_vectors(scheme, w.device)
    i = torch.arange(scheme.rows, device=w.device)
    place = (i & (scheme.width - 1)).unsqueeze(1) ^ perm
    table = w.view(scheme.groups, scheme.width).t().contiguous()
    dense = functional.embedding(place, table).view(scheme.rows, -1)[:, : scheme.cols]
    return (dense * row_sign.to(w.dtype).unsqueeze(1)).mul_(col_sign.to(w.dtype))


def _fold_dyadic(grad: Tensor, scheme: Dyadic) -> Tensor:
    perm, row_sign, col_sign = dyadic_vectors(scheme, grad.device)
    width, groups, steps = scheme.width, scheme.groups, perm.numel()
    folds = -(-scheme.rows // width)
    # Rows i, i + width, ... meet in the same buckets; missing rows and columns count as zero.
    padded = grad.new_zeros(folds * width, steps * groups)
    torch.mul(grad, row_sign.to(grad.dtype).unsqueeze(1), out=padded[: scheme.rows, : scheme.cols])
    padded[: scheme.rows, : scheme.cols] *= col_sign.to(grad.dtype)
    if folds > 1:
        padded = padded.view(folds, width, -1).sum(0)
    k = torch.arange(width, device=grad.device)
    cells = (k.unsqueeze(1) ^ perm) * steps + torch.arange(steps, device=grad.device)
    sums = functional.embedding_bag(cells, padded.view(width * steps, groups), mode="sum")
    return sums.t().reshape(-1)


def _expand_xxh32(w: Tensor, scheme: Xxh32) -> Tensor:
    return pick_cells(w, index_cache.get(scheme, w.device)).view(scheme.rows, scheme.cols)


def _fold_xxh32(grad: Tensor, scheme: Xxh32) -> Tensor:
    return fold_cells(grad, index_cache.get(scheme, grad.device), scheme.buckets)


def pick_cells(w: Tensor, index: Tensor) -> Tensor:
    """The numbers of `w`, signs applied, of cells with this signed index."""
    return torch.cat([w, -w]).index_select(0, index)


def fold_cells(grad: Tensor, index: Tensor, buckets: int) -> Tensor:
    """The sums over buckets, [buckets], of `grad` for cells with this signed index."""
    sums = grad.new_zeros(2 * buckets)
    sums.index_add_(0, index, grad.reshape(-1))
    return sums[:buckets] - sums[buckets:]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums over a bucket are taken in: thousands of terms meet there, half precision would lose most."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _define(
    kind: type[Scheme], to_dense: Callable[[Tensor, Any], Tensor], to_vector: Callable[[Tensor, Any], Tensor]
) -> tuple[Any, Any]:
    """Register the operators expand_<scheme> and fold_<scheme>, each with the other as its gradient."""
    expand_schema = f"(Tensor w, int seed, int rows, int cols, int {kind.parameter}) -> Tensor"
    fold_schema = f"(Tensor grad, int buckets, int seed, int {kind.parameter}) -> Tensor"
    make: Callable[[int, int, int, int, int], Scheme] = kind

    @torch.library.custom_op(f"hashinfer::expand_{kind.name}", mutates_args=(), schema=expand_schema)
    def expand(w: Tensor, seed: int, rows: int, cols: int, parameter: int) -> Tensor:
        return to_dense(w, make(w.shape[0], rows, cols, seed, parameter))

    @torch.library.custom_op(f"hashinfer::fold_{kind.name}", mutates_args=(), schema=fold_schema)
    def fold(grad: Tensor, buckets: int, seed: int, parameter: int) -> Tensor:
        rows, cols = grad.shape
        return to_vector(grad.to(wide(grad.dtype)), make(buckets, rows, cols, seed, parameter)).to(grad.dtype)

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


_OPERATORS = {
    Dyadic.name: _define(Dyadic, _expand_dyadic, _fold_dyadic),
    Xxh32.name: _define(Xxh32, _expand_xxh32, _fold_xxh32),
}


def expand(w: Tensor, scheme: Scheme) -> Tensor:
    """W [rows, cols] of `scheme` from the weight vector `w` [buckets], in w's dtype, on w's device; differentiable.

    Raises SchemeError if `w` does not fit the scheme's parameter.
    """
    to_dense, _ = _OPERATORS[scheme.name]
    out: Tensor = to_dense(w, scheme.seed, scheme.rows, scheme.cols, scheme.attributes()[scheme.parameter])
    return out


def fold(grad: Tensor, scheme: Scheme) -> Tensor:
    """The transpose of `expand`: the sums over buckets, signs applied, of `grad` [rows, cols] -> [buckets]."""
    _, to_vector = _OPERATORS[scheme.name]
    out: Tensor = to_vector(grad, scheme.buckets, scheme.seed, scheme.attributes()[scheme.parameter])
    return out
