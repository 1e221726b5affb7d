"""The nets in PyTorch, with a fast training step on one core.

A step gathers W once, in the precision of the products, and sums its gradient back into buckets in float32: by an index
of all virtual weights, which never changes, or, of a dyadic W, run by run. W has one row more than there are inputs:
the biases.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Self

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from bench.paper.cells import PIXELS, Cell
from bench.paper.sets import GREY
from hashinfer.schemes import Dyadic, Scheme

_Bits = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
_Sums = npt.NDArray[np.float32]


def _bits(x: Tensor) -> Any:
    """A contiguous tensor's numbers as unsigned integers of their width."""
    return x.view(torch.int16 if x.itemsize == 2 else torch.int32).numpy().view(f"u{x.itemsize}")


class _Table:
    """Any scheme: where each virtual weight is, doubled, with the sign hash in bit 0."""

    groups = 1

    def __init__(self, scheme: Scheme) -> None:
        bucket, sign = scheme.table()
        self._index = (2 * bucket + (sign < 0)).astype(np.int32)

    def gather(self, w: _Bits, out: _Bits) -> None:
        """Virtual weights [rows, cols] from w [K, 1]."""
        _gather(w.reshape(-1), self._index, out)

    def sum(self, grad: _Bits, sums: _Sums) -> None:
        """Gradients of the virtual weights, summed up in buckets [K, 1], which are zero before."""
        _sum_buckets(grad, self._index, sums.reshape(-1))


class _Runs:
    """The dyadic scheme: in a row of W each run of G columns, with G groups, is a row of w [width, G].

    Group by group, as the weight vector is stored, the columns of a run would all fall into one set of the cache.
    """

    def __init__(self, scheme: Dyadic) -> None:
        i, j = np.arange(scheme.rows, dtype=np.uint64), np.arange(scheme.cols, dtype=np.uint64)
        self.groups = scheme.groups
        t = np.arange(-(-scheme.cols // self.groups), dtype=np.uint64)
        run = (i[:, None] & np.uint64(scheme.width - 1)) ^ scheme.permute(t)
        self._run = run.astype(np.int32)
        negative = scheme.row_negative(i).astype(np.uint32), scheme.col_negative(j).astype(np.uint32)
        self._signs = {size: [(n << (8 * size - 1)).astype(f"u{size}") for n in negative] for size in (2, 4)}

    def gather(self, w: _Bits, out: _Bits) -> None:
        """Virtual weights [rows, cols] from w [width, groups]."""
        _gather_runs(w, self._run, *self._signs[out.itemsize], out)

    def sum(self, grad: _Bits, sums: _Sums) -> None:
        """Gradients of the virtual weights, summed up in buckets [width, groups], which are zero before."""
        _sum_runs(grad, self._run, *self._signs[4], sums)


@numba.njit(nogil=True)
def _gather(w: _Bits, index: npt.NDArray[np.int32], out: _Bits) -> None:
    top = w.itemsize * 8 - 1
    for r in range(index.shape[0]):
        for c in range(index.shape[1]):
            i = index[r, c]
            out[r, c] = w[i >> 1] ^ ((i & 1) << top)


@numba.njit(nogil=True)
def _sum_buckets(grad: _Bits, index: npt.NDArray[np.int32], sums: _Sums) -> None:
    shift = np.uint32(32 - grad.itemsize * 8)
    for r in range(index.shape[0]):
        for c in range(index.shape[1]):
            i = index[r, c]
            bits = (np.uint32(grad[r, c]) << shift) ^ np.uint32((i & 1) << 31)
            sums[i >> 1] += np.uint32(bits).view(np.float32)


@numba.njit(nogil=True)
def _gather_runs(w: _Bits, run: npt.NDArray[np.int32], row: _Bits, col: _Bits, out: _Bits) -> None:
    groups = w.shape[1]
    for i in range(len(out)):
        for t in range(run.shape[1]):
            first = t * groups
            target, source, sign = out[i, first : first + groups], w[run[i, t]], col[first : first + groups]
            for g in range(target.size):
                target[g] = source[g] ^ sign[g] ^ row[i]


@numba.njit(nogil=True)
def _sum_runs(
    grad: _Bits, run: npt.NDArray[np.int32], row: npt.NDArray[np.uint32], col: npt.NDArray[np.uint32], sums: _Sums
) -> None:
    groups = sums.shape[1]
    shift = np.uint32(32 - grad.itemsize * 8)
    for i in range(len(grad)):
        for t in range(run.shape[1]):
            first = t * groups
            source, target, sign = grad[i, first : first + groups], sums[run[i, t]], col[first : first + groups]
            for g in range(source.size):
                target[g] += np.uint32(np.uint32(source[g] << shift) ^ sign[g] ^ row[i]).view(np.float32)


class _HashedProduct(torch.autograd.Function):
    """x @ W[:-1] + W[-1], with the gradients of x and of the weight vector [groups, width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, virtual: _Table | _Runs, full: Tensor) -> Tensor:
        virtual.gather(_bits(w.to(x.dtype).t().contiguous()), _bits(full))
        ctx.save_for_backward(x)
        ctx.full, ctx.virtual, ctx.shape = full, virtual, w.shape
        return torch.addmm(full[-1], x, full[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (x,) = ctx.saved_tensors
        to_x = grad @ ctx.full[:-1].t() if ctx.needs_input_grad[0] else None
        # W is not needed any more: its gradient takes its place.
        dense = ctx.full
        torch.mm(x.t(), grad, out=dense[:-1])
        torch.sum(grad, 0, out=dense[-1])
        groups, width = ctx.shape
        sums = torch.zeros(width, groups)
        ctx.virtual.sum(_bits(dense), sums.numpy())
        return to_x, sums.t().contiguous(), None, None


class HashedLayer(nn.Module):
    """[N, rows - 1] -> [N, cols], of a scheme for W [rows, cols]; stored: `weight_vector` [K], float32.

    All its passes share the memory of one W: the backward pass belongs to the forward pass before it.
    """

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        # Every virtual weight is a stored one up to sign, so it has the variance of He et al., 2015.
        self.weight_vector = nn.Parameter(torch.randn(scheme.buckets) * (2 / scheme.rows) ** 0.5)
        self._virtual = _Runs(scheme) if isinstance(scheme, Dyadic) else _Table(scheme)
        self._full: dict[torch.dtype, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        full = self._full.get(x.dtype)
        if full is None:
            full = self._full[x.dtype] = torch.empty(self.scheme.rows, self.scheme.cols, dtype=x.dtype)
        w = self.weight_vector.view(self._virtual.groups, -1)
        out: Tensor = _HashedProduct.apply(x, w, self._virtual, full)
        return out


class DenseLayer(nn.Module):
    """[N, m] -> [N, n] with float32 weights [m, n] and biases, computed in the precision of x."""

    def __init__(self, m: int, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n) * (2 / m) ** 0.5)
        self.bias = nn.Parameter(torch.zeros(n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias.to(x.dtype), x, self.weight.to(x.dtype))


class Masks:
    """Dropout masks and noise by NumPy's SFC64, which is many times quicker than PyTorch's generator on a CPU."""

    def __init__(self, seed: tuple[int, ...]) -> None:
        self._random = np.random.Generator(np.random.SFC64(seed))

    def __call__(self, x: Tensor, drop: float) -> Tensor:
        """x with a share `drop`, in steps of 1/256, set to zero and the rest scaled up."""
        level = round(drop * 256)
        if not level:
            return x
        draw = np.frombuffer(self._random.bytes(x.numel()), np.uint8).reshape(x.shape)
        keep = torch.from_numpy(draw >= level)
        return x * keep.to(x.dtype).mul_(256 / (256 - level))

    def noisy(self, x: Tensor, deviation: float) -> Tensor:
        """x with normal noise of a deviation."""
        if not deviation:
            return x
        noise = torch.from_numpy(self._random.standard_normal(tuple(x.shape), np.float32))
        return x + noise.mul_(deviation).to(x.dtype)


class Stack(nn.Module):
    """Layers with ReLU between them. The last one always computes in float32."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def narrow(self, precision: torch.dtype) -> Self:
        """Itself, for use without training, with all but the output layer's parameters in the products' precision."""
        self.layers[:-1].to(precision)
        return self.requires_grad_(False).eval()

    def forward(self, x: Tensor, masks: Masks | None = None, drop: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """[N, 784] in any precision -> float32 logits [N, classes]; `drop` of the inputs and of the hidden units."""
        if masks is not None:
            x = masks(x, drop[0])
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            if masks is not None:
                x = masks(x, drop[1])
        out: Tensor = self.layers[-1](x.float())
        return out


class Net(Stack):
    """The multi-layer perceptron of a cell; of grey inputs, with a gain for each, [784], 1 before training.

    A dense net's gains are factors of its first weights, so it stores none.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(
            [HashedLayer(s) for s in cell.schemes()]
            if cell.scheme
            else [DenseLayer(m, n) for m, n in pairwise(cell.units)]
        )
        self.gain = nn.Parameter(torch.ones(PIXELS)) if cell.data in GREY else None
        self.numbers = sum(p.numel() for p in self.layers.parameters()) + cell.gains
        """All stored numbers, biases and gains included."""
        if self.numbers > cell.budget:
            raise ValueError(f"{cell.name} stores {self.numbers} numbers; its budget is {cell.budget}")

    def forward(self, x: Tensor, masks: Masks | None = None, drop: tuple[float, float] = (0.0, 0.0)) -> Tensor:
        """As Stack's, of inputs times their gains."""
        return super().forward(x if self.gain is None else x * self.gain.to(x.dtype), masks, drop)
