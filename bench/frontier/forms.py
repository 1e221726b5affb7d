"""The layers of every family, trained by bench.paper.train as hashed and dense ones are."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from bench.frontier.storage import Layer, Mask, rounded
from bench.paper.nets import DenseLayer, HashedLayer, Stack
from hashinfer.schemes import Dyadic, Scheme, scheme_named


class _Straight(torch.autograd.Function):
    """Rounded forward, as it is backward (the straight-through estimator: Bengio et al., 2013)."""

    @staticmethod
    def forward(_ctx: object, weight: Tensor, kind: str) -> Tensor:
        return torch.from_numpy(rounded(weight.detach().numpy(), kind))

    @staticmethod
    def backward(_ctx: object, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad, None


class Quantised(nn.Module):
    """A dense layer whose weights [m, n] are rounded in every forward pass."""

    def __init__(self, dense: DenseLayer, kind: str) -> None:
        super().__init__()
        self.weight, self.bias, self.kind = copied(dense.weight), copied(dense.bias), kind

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = _Straight.apply(self.weight, self.kind)
        return torch.addmm(self.bias.to(x.dtype), x, weight.to(x.dtype))


class Pruned(nn.Module):
    """A dense layer of which the places of a mask [m, n] are kept."""

    mask: Tensor

    def __init__(self, dense: DenseLayer, mask: Mask) -> None:
        super().__init__()
        self.weight, self.bias = copied(dense.weight), copied(dense.bias)
        self.register_buffer("mask", torch.from_numpy(mask.astype(np.float32)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias.to(x.dtype), x, (self.weight * self.mask).to(x.dtype))


class LowRank(nn.Module):
    """left [m, r] times right [r, n], at first the best of that rank (Eckart and Young, 1936)."""

    def __init__(self, dense: DenseLayer, rank: int) -> None:
        super().__init__()
        u, s, v = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
        root = s[:rank].sqrt()
        self.left, self.right = nn.Parameter(u[:, :rank] * root), nn.Parameter(root[:, None] * v[:rank])
        self.bias = copied(dense.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias.to(x.dtype), x @ self.left.to(x.dtype), self.right.to(x.dtype))


def copied(parameter: Tensor) -> nn.Parameter:
    """A parameter of its own."""
    return nn.Parameter(parameter.detach().clone())


def copy_of(layer: DenseLayer) -> DenseLayer:
    """A dense layer with the same numbers."""
    out = DenseLayer(*layer.weight.shape)
    out.load_state_dict(layer.state_dict())
    return out


def dense(units: Iterable[int]) -> Stack:
    """Fresh dense layers."""
    units = list(units)
    return Stack(DenseLayer(m, n) for m, n in itertools.pairwise(units))


def hashed(scheme: str, units: list[int], budget: int, seed: int) -> Stack:
    """Fresh hashed layers of at most `budget` numbers; biases are a row of each W, as in bench.paper."""
    kind = scheme_named(scheme)
    (m, n), (o, p) = (units[0] + 1, units[1]), (units[1] + 1, units[2])
    last = min(1024, budget // 4, o * p)
    step = 1 << (m - 1).bit_length() if kind is Dyadic else 1
    # Less than one group of full width: a dyadic layer narrows, and rows i and i + width share their buckets.
    while step > budget - last:
        step //= 2
    first = kind.fit(m, n, (budget - last) // step * step, seed)
    return Stack([HashedLayer(first), HashedLayer(kind.fit(o, p, min(budget - first.buckets, last), seed + 1))])


def importance(net: Stack, x: Tensor) -> list[np.ndarray]:
    """The diagonal of each weight matrix's Gauss-Newton matrix [m, n], for Optimal Brain Damage (LeCun et al., 1990).

    Of a softmax's cross entropy that is the mean square of the gradient under labels that the net itself draws.
    """
    first, second = net.layers
    with torch.no_grad():
        inner = torch.relu(first(x))
        share = torch.softmax(second(inner), 1)
        drawn = torch.multinomial(share, 1, generator=torch.Generator().manual_seed(1)).squeeze(1)
        delta = share - torch.nn.functional.one_hot(drawn, share.shape[1])
        back = (delta @ second.weight.t()) * (inner > 0)
        return [((a**2).t() @ (d**2) / len(x)).numpy() for a, d in ((x, back), (inner, delta))]


def masks(net: Stack, keep: float, curvature: list[np.ndarray] | None = None) -> list[Mask]:
    """The `keep` share of all weights with the largest saliency, h w^2 / 2 for curvature h.

    Without curvature, with the largest magnitude, relative to its layer's: layers differ in scale.
    """
    weights = [layer.weight.detach().numpy() for layer in net.layers]
    if curvature is None:
        scores = [np.abs(w) / np.sqrt(np.square(w).mean()) for w in weights]
    else:
        scores = [h * w**2 / 2 for h, w in zip(curvature, weights, strict=True)]
    whole = np.concatenate([s.reshape(-1) for s in scores])
    count = max(1, round(keep * whole.size))
    limit = np.partition(whole, whole.size - count)[whole.size - count]
    return [s >= limit for s in scores]


def stored(net: Stack) -> list[Layer]:
    """What is stored of each layer."""
    out = []
    for layer in net.layers:
        if isinstance(layer, HashedLayer):
            out.append(Layer(layer.scheme.buckets, 1, seed=True))
        elif isinstance(layer, LowRank):
            (m, r), n = layer.left.shape, layer.right.shape[1]
            out += [Layer(m * r, r), Layer(r * n, n, biases=n)]
        else:
            m, n = layer.weight.shape
            mask = layer.mask.numpy() > 0 if isinstance(layer, Pruned) else None
            out.append(Layer(m * n, n, biases=n, mask=mask))
    return out


@torch.no_grad()
def rounded_copy(net: Stack, kind: str) -> None:
    """Round what a net stores to a format, in place; biases of dense layers stay float32."""
    for layer in net.layers:
        for name, parameter in layer.named_parameters():
            if name == "bias":
                continue
            matrix = parameter.view(-1, 1) if name == "weight_vector" else parameter
            matrix.copy_(torch.from_numpy(rounded(matrix.numpy(), kind)))


def scheme_of(net: Stack) -> Scheme:
    """The scheme of a hashed net's first layer."""
    layer = net.layers[0]
    assert isinstance(layer, HashedLayer)
    return layer.scheme
