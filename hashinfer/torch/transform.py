"""x @ W for the dyadic scheme by Walsh-Hadamard transforms, with its gradients; W is never made.

With H the Walsh-Hadamard matrix of size width, u[k] = sum of s(i) x[i] over i = k (mod width), and U = H u:

    y[j]     = r(j) / width (H ((H w_g) . U))[perm(t)]                   g = j mod G, t = j div G
    V_g      = H v_g,  v_g[perm(t)] = r(j) / width dy[j], zero elsewhere
    dw_g     = H (sum over rows of V_g . U)
    dx[i]    = s(i) (H (sum over g of V_g . (H w_g)))[i mod width]

since H is symmetric. On the CPU in float32 jitted kernels do it, one vector of `width` at a time; elsewhere PyTorch
does, with H as a Kronecker product of two smaller matrices. Errors are norm-wise, log2(width) eps ||u|| ||w_g||.
"""

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

from hashinfer.kernels import training
from hashinfer.schemes import Dyadic
from hashinfer.torch.expand import dyadic_vectors, expand, fold, run_kernel

# Nanoseconds, one thread of an AMD EPYC (Zen 4): a butterflied number there and back, a cell of W made twice and folded
# once, a multiply-add of a product and its two gradients.
TRANSFORM_NS, CELL_NS, MULTIPLY_ADD_NS = 1.1, 1.5, 0.15
MIN_CELLS = 1 << 14
"""Below this many virtual weights the calls cost more than the work."""


def pays(scheme: Dyadic, batch: int, x: Tensor) -> bool:
    """Whether the transform is likely to be the faster way to train on `batch` rows of `x`.

    Only where the jitted kernels apply (CPU, float32): dense products of other devices and dtypes are hard to beat.
    """
    if not _jitted(x) or scheme.virtual_size < MIN_CELLS:
        return False
    transformed = TRANSFORM_NS * batch * scheme.buckets
    dense = (CELL_NS + MULTIPLY_ADD_NS * batch / torch.get_num_threads()) * scheme.virtual_size
    return transformed < dense


def dyadic_product(x: Tensor, w: Tensor, scheme: Dyadic) -> Tensor:
    """x @ W: x [batch, rows], w [buckets] -> [batch, cols], all of one dtype and device; twice differentiable."""
    return cast(Tensor, _Product.apply(x, w, scheme))  # type: ignore[no-untyped-call]


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, scheme: Dyadic) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.scheme = scheme
        return _forward(_folded(x, scheme), _spectrum(w, scheme), scheme)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, w = ctx.saved_tensors
        scheme: Dyadic = ctx.scheme
        (dy,) = grads
        if torch.is_grad_enabled():
            dx = dy @ expand(w, scheme).t() if ctx.needs_input_grad[0] else None
            return dx, fold(x.t() @ dy, scheme) if ctx.needs_input_grad[1] else None, None
        d_spectrum, d_u = _backward(_folded(x, scheme), _spectrum(w, scheme), dy, scheme)
        dw = hadamard(d_spectrum).reshape(-1) if ctx.needs_input_grad[1] else None
        return _unfolded(d_u, scheme) if ctx.needs_input_grad[0] else None, dw, None


def _spectrum(w: Tensor, scheme: Dyadic) -> Tensor:
    """H w_g: [G, width]."""
    return hadamard(w.view(scheme.groups, scheme.width))


def _folded(x: Tensor, scheme: Dyadic) -> Tensor:
    """H u: [batch, width]."""
    signed = x * dyadic_vectors(scheme, x.device).row_sign.to(x.dtype)
    folds = -(-scheme.rows // scheme.width)
    u = functional.pad(signed, (0, folds * scheme.width - scheme.rows))
    return hadamard(u.view(len(x), folds, scheme.width).sum(1) if folds > 1 else u)


def _unfolded(d_u: Tensor, scheme: Dyadic) -> Tensor:
    d_u = hadamard(d_u)
    folds = -(-scheme.rows // scheme.width)
    dx = d_u if folds == 1 else d_u.repeat(1, folds)
    return dx[:, : scheme.rows] * dyadic_vectors(scheme, d_u.device).row_sign.to(d_u.dtype)


def _scale(scheme: Dyadic, like: Tensor) -> Tensor:
    """r(j) / width: [cols]. Exact, as width is a power of two."""
    return dyadic_vectors(scheme, like.device).col_sign.to(like.dtype) / scheme.width


def _jitted(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32


def _forward(u: Tensor, spectrum: Tensor, scheme: Dyadic) -> Tensor:
    perm, scale = dyadic_vectors(scheme, u.device).perm, _scale(scheme, u)
    if _jitted(u):
        y, scratch = u.new_empty(len(u), scheme.cols), u.new_empty(scheme.width)
        sizes = len(u), scheme.width, scheme.groups, scheme.cols
        run_kernel(training.dyadic_products, spectrum, u, *sizes, perm, scale, y, scratch)
        return y
    v = hadamard(u.unsqueeze(1) * spectrum)
    # [batch, G, T] -> [batch, T, G]: column j = t G + g.
    return v[:, :, perm].transpose(1, 2).reshape(len(u), -1)[:, : scheme.cols] * scale


def _backward(u: Tensor, spectrum: Tensor, dy: Tensor, scheme: Dyadic) -> tuple[Tensor, Tensor]:
    """The gradients with respect to H w, [G, width], and H u, [batch, width]."""
    perm, scale = dyadic_vectors(scheme, u.device).perm, _scale(scheme, u)
    if _jitted(u):
        dy = dy.contiguous()
        d_spectrum, d_u, scratch = torch.zeros_like(spectrum), torch.zeros_like(u), u.new_empty(scheme.width)
        sizes = len(u), scheme.width, scheme.groups, scheme.cols
        run_kernel(training.dyadic_gradients, spectrum, u, dy, *sizes, perm, scale, d_spectrum, d_u, scratch)
        return d_spectrum, d_u
    steps = perm.numel()
    slope = functional.pad(dy * scale, (0, steps * scheme.groups - scheme.cols))
    slope = slope.view(len(u), steps, scheme.groups).transpose(1, 2)
    v = hadamard(u.new_zeros(len(u), scheme.groups, scheme.width).index_add_(2, perm, slope))
    return torch.einsum("bgk,bk->gk", v, u), torch.einsum("bgk,gk->bk", v, spectrum)


def hadamard(v: Tensor) -> Tensor:
    """H v along the last dimension, a power of two: a new, contiguous tensor. Autograd does not see it."""
    width = v.shape[-1]
    if _jitted(v):
        out = v.detach().clone(memory_format=torch.contiguous_format)
        run_kernel(training.hadamard_rows, out, out.numel() // width, width)
        return out
    high = 1 << ((width.bit_length() - 1) // 2)
    left, right = _matrix(high, v.dtype, v.device), _matrix(width // high, v.dtype, v.device)
    return (left @ (v.reshape(-1, high, width // high) @ right)).reshape(v.shape)


@lru_cache(maxsize=64)
def _matrix(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """H of `size`, the root of a width at most: H[k, l] = (-1)^popcount(k & l)."""
    h = torch.ones(1, 1, dtype=dtype, device=device)
    while len(h) < size:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h
