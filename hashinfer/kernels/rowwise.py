"""Functions of whole rows of float32, and of single elements that need more than arithmetic: softmax, layer
normalisation, GELU.

Sums are taken in float64 and rounded once. Softmax: within
(4 + top - x) eps of each value, relative to it. Normalised elements, before scale and bias: within 4 eps of the row's
largest magnitude over its deviation. GELU: within 8 eps |x|. A tile is a few rows, or TILE elements.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hashinfer.kernels.arguments import float_at
from hashinfer.kernels.elementwise import FLAT, TILE
from hashinfer.kernels.jit import device, entry
from hashinfer.kernels.maths import exp32, gelu32, gelu_by_tanh32
from hashinfer.kernels.vectors import float32_array

ROWS = ("x", "y", "rows", "cols", "rows_per_tile", "epsilon", "scale", "bias")
X, Y, COUNT, COLS, PER_TILE, EPSILON, SCALE, BIAS = range(len(ROWS))
_FLAT_X, _FLAT_KIND, _FLAT_COUNT, _FLAT_Y = range(len(FLAT))

EXACT, BY_TANH = 0, 1
"""Kinds of GELU."""


@device
def _softmax(x: Any, y: Any) -> None:
    top: Any = np.float32(-np.inf)
    for k in range(x.size):
        # A NaN stays the largest: nothing compares as above it.
        if x[k] > top or x[k] != x[k]:
            top = x[k]
    total = 0.0
    for k in range(x.size):
        e: Any = exp32(x[k] - top)
        y[k] = e
        total += e
    for k in range(x.size):
        y[k] = np.float32(y[k] / total)


@entry(*ROWS)
def softmax_rows(args, tile, scratch):  # type: ignore[no-untyped-def]
    """y = exp(x) over its sum, row by row."""
    cols = args[COLS]
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[COUNT])):
        _softmax(float32_array(args[X] + 4 * r * cols, cols), float32_array(args[Y] + 4 * r * cols, cols))


@device
def _normalised(x: Any, y: Any, epsilon: Any) -> None:
    total = 0.0
    for k in range(x.size):
        total += x[k]
    mean = np.float32(total / x.size)
    squares = 0.0
    for k in range(x.size):
        d = np.float64(x[k] - mean)
        squares += d * d
    factor = np.float32(1.0 / math.sqrt(squares / x.size + epsilon))
    for k in range(x.size):
        y[k] = (x[k] - mean) * factor


@entry(*ROWS)
def layer_norm_rows(args, tile, scratch):  # type: ignore[no-untyped-def]
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, row by row; bias may be missing (0)."""
    cols, epsilon = args[COLS], np.float64(float_at(args, EPSILON))
    scale, bias = float32_array(args[SCALE], cols), float32_array(args[BIAS], cols)
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[COUNT])):
        x, y = float32_array(args[X] + 4 * r * cols, cols), float32_array(args[Y] + 4 * r * cols, cols)
        _normalised(x, y, epsilon)
        for k in range(cols):
            y[k] *= scale[k]
        if args[BIAS] != 0:
            for k in range(cols):
                y[k] += bias[k]


@entry(*FLAT)
def gelu(args, tile, scratch):  # type: ignore[no-untyped-def]
    """y = x Phi(x), or its approximation by tanh, over `count` elements."""
    first = tile * TILE
    count = min(TILE, args[_FLAT_COUNT] - first)
    x, y = float32_array(args[_FLAT_X] + 4 * first, count), float32_array(args[_FLAT_Y] + 4 * first, count)
    if args[_FLAT_KIND] == EXACT:
        for k in range(count):
            y[k] = gelu32(x[k])
    else:
        for k in range(count):
            y[k] = gelu_by_tanh32(x[k])
