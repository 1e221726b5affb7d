"""The nets in PyTorch, with a fast training step on one core.

A hashed layer keeps the index of its virtual matrix, which never changes: a step gathers W once from [w, -w], in the
precision of the products, and sums its gradient back into buckets in float32. W has one row more than there are
inputs: the biases.
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

from bench.paper.cells import Cell
from hashinfer.schemes import Dyadic, Scheme


@numba.njit(nogil=True)
def _sum_buckets(grad: npt.NDArray[np.float32], index: npt.NDArray[np.int32], sums: npt.NDArray[np.float32]) -> None:
    for k in range(index.size):
        sums[index[k]] += grad[k]


class _HashedProduct(torch.autograd.Function):
    """x @ W[:-1] + W[-1], with the gradients of x and of the weight vector [groups, width]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, index: Tensor, cols: int) -> Tensor:
        narrow = w.t().to(x.dtype).reshape(-1)
        full = torch.cat([narrow, -narrow]).index_select(0, index).view(-1, cols)
        ctx.save_for_backward(x, full, index)
        ctx.shape = w.shape
        return torch.addmm(full[-1], x, full[:-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, full, index = ctx.saved_tensors
        dense = torch.empty_like(full)
        torch.mm(x.t(), grad, out=dense[:-1])
        torch.sum(grad, 0, out=dense[-1])
        groups, width = ctx.shape
        sums = torch.zeros(2, width, groups)
        _sum_buckets(dense.float().view(-1).numpy(), index.numpy(), sums.view(-1).numpy())
        to_x = grad @ full[:-1].t() if ctx.needs_input_grad[0] else None
        return to_x, (sums[0] - sums[1]).t(), None, None


class HashedLayer(nn.Module):
    """[N, rows - 1] -> [N, cols], of a scheme for W [rows, cols]; stored: `weight_vector` [K], float32."""

    index: Tensor

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        bucket, sign = scheme.table()
        self.groups = scheme.groups if isinstance(scheme, Dyadic) else 1
        # Neighbouring columns of a dyadic W lie in neighbouring groups: bucket by bucket, groups side by side, they
        # are neighbours in memory. Group by group they would all fall into one set of the cache.
        group, within = np.divmod(bucket, scheme.buckets // self.groups)
        signed = within * self.groups + group + np.where(sign < 0, scheme.buckets, 0)
        self.register_buffer("index", torch.from_numpy(signed.astype(np.int32).reshape(-1)), persistent=False)
        self.scheme = scheme
        # Every virtual weight is a stored one up to sign, so it has the variance of He et al., 2015.
        self.weight_vector = nn.Parameter(torch.randn(scheme.buckets) * (2 / scheme.rows) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight_vector.view(self.groups, -1)
        out: Tensor = _HashedProduct.apply(x, w, self.index, self.scheme.cols)
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
    """Dropout masks from bytes of NumPy's SFC64, which is many times quicker than PyTorch's generator on a CPU."""

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
    """The multi-layer perceptron of a cell."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(
            [HashedLayer(s) for s in cell.schemes()]
            if cell.scheme
            else [DenseLayer(m, n) for m, n in pairwise(cell.units)]
        )
        if self.numbers > cell.budget:
            raise ValueError(f"{cell.name} stores {self.numbers} numbers; its budget is {cell.budget}")

    @property
    def numbers(self) -> int:
        """All stored numbers, biases included."""
        return sum(p.numel() for p in self.parameters())
