"""The readable reference that kernels are held against: plain loops in float64, one thing at a time."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from hashinfer.schemes import Scheme

if TYPE_CHECKING:
    from hashinfer.ops.matrix import HashedMatrix

EPS = float(np.finfo(np.float32).eps)


def virtual(scheme: Scheme, w: np.ndarray) -> np.ndarray:
    """W [rows, cols] in float64, cell by cell."""
    out = np.empty((scheme.rows, scheme.cols))
    for i in range(scheme.rows):
        for j in range(scheme.cols):
            bucket, sign = scheme.cell(i, j)
            out[i, j] = sign * float(w[bucket])
    return out


def dense(matrix: HashedMatrix) -> np.ndarray:
    """W [rows, cols] of a matrix at rest, float32."""
    w = matrix.w.view(np.float16) if matrix.w.dtype == np.uint16 else matrix.w
    return matrix.scheme.expand(w.astype(np.float32)) * np.float32(matrix.scale)


def hadamard_matrix(width: int) -> np.ndarray:
    """H[k, l] = (-1)^popcount(k & l), float64."""
    parity = np.zeros((width, width), np.int64)
    both = np.arange(width)[:, None] & np.arange(width)[None, :]
    while both.any():
        parity ^= both & 1
        both >>= 1
    return 1.0 - 2.0 * parity


def butterfly(v: list[float], distance: int) -> list[float]:
    """One step of the transform on a list: pairs at `distance` become their sum and their difference."""
    return [v[i ^ distance] - v[i] if i & distance else v[i] + v[i ^ distance] for i in range(len(v))]


def half(bits: int) -> float:
    """The value of a float16's 16 bits."""
    sign = -1.0 if bits & 0x8000 else 1.0
    exponent, fraction = (bits >> 10) & 31, bits & 1023
    if exponent == 31:
        return math.nan if fraction else sign * math.inf
    if exponent == 0:
        return sign * fraction * 2.0**-24
    return sign * (1024 + fraction) * 2.0 ** (exponent - 25)


def matmul(x: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """x @ dense, term by term in float64, so that NaN and Inf go where IEEE arithmetic sends them."""
    out = np.zeros((x.shape[0], dense.shape[1]))
    with np.errstate(all="ignore"):
        for r in range(x.shape[0]):
            for i in range(x.shape[1]):
                out[r] += float(x[r, i]) * dense[i].astype(np.float64)
    return out


def conv2d(
    x: np.ndarray,
    weights: np.ndarray,
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
) -> np.ndarray:
    """x [N, C, H, W] with weights [O, C / group, kh, kw] -> [N, O, H', W'] in float64; pads as ONNX has them."""
    images, _, height, width = x.shape
    outs, ins, kh, kw = weights.shape
    out_h = (height + pads[0] + pads[2] - dilations[0] * (kh - 1) - 1) // strides[0] + 1
    out_w = (width + pads[1] + pads[3] - dilations[1] * (kw - 1) - 1) // strides[1] + 1
    y = np.zeros((images, outs, out_h, out_w))
    for n, o, p, q in np.ndindex(y.shape):
        first = o // (outs // group) * ins
        for c, ky, kx in np.ndindex(ins, kh, kw):
            row, col = p * strides[0] + ky * dilations[0] - pads[0], q * strides[1] + kx * dilations[1] - pads[1]
            if 0 <= row < height and 0 <= col < width:
                y[n, o, p, q] += float(x[n, first + c, row, col]) * float(weights[o, c, ky, kx])
    return y


def lookup(dense: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows of `dense` by id; negative ones count from the end."""
    out = np.empty((*ids.shape, dense.shape[1]))
    for at in np.ndindex(ids.shape):
        row = int(ids[at])
        out[at] = dense[row + dense.shape[0] if row < 0 else row]
    return out


def activate(y: np.ndarray, kind: str, a: float = 0.0, b: float = 0.0) -> np.ndarray:
    """The activations that kernels fuse."""
    with np.errstate(all="ignore"):
        return {
            "none": lambda: y,
            "relu": lambda: np.where(y < 0, 0.0, y),
            "leaky_relu": lambda: np.where(y < 0, a * y, y),
            "clip": lambda: np.where(y < a, a, np.where(y > b, b, y)),
            "sigmoid": lambda: 1 / (1 + np.exp(-y)),
            "tanh": lambda: np.tanh(y),
        }[kind]()
