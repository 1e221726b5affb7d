"""Functions of whole rows of float32: softmax and its logarithm, layer normalisation.

Sums are taken in float64 and rounded once. Softmax: within (4 + top - x) eps of each value, relative to it; its
logarithm: within 4 eps (1 + top - x + log(columns)). Normalised elements, before scale and bias: within 4 eps of the
row's largest magnitude over its deviation. A tile is a few rows.
"""

import math
from typing import Any

import numpy as np

from hashinfer.kernels.arguments import float_at
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.maths import exp32
from hashinfer.kernels.vectors import float32_array

ROWS = ("x", "y", "rows", "cols", "rows_per_tile", "epsilon", "scale", "bias", "channels")
X, Y, COUNT, COLS, PER_TILE, EPSILON, SCALE, BIAS, CHANNELS = range(len(ROWS))


@inlined
def _top(x: Any) -> Any:
    top: Any = np.float32(-np.inf)
    for k in range(x.size):
        # A NaN stays the largest: nothing compares as above it.
        if x[k] > top or x[k] != x[k]:
            top = x[k]
    return top


@inlined
def _row_at(args: Any, r: Any) -> Any:
    """Row r of x and of y."""
    at, cols = 4 * r * args[COLS], args[COLS]
    return float32_array(args[X] + at, cols), float32_array(args[Y] + at, cols)


@device
def _log_softmax(x: Any, y: Any) -> None:
    top = _top(x)
    total = 0.0
    for k in range(x.size):
        total += exp32(x[k] - top)
    # In float64: of three floats the compiler may add up any two first.
    level = np.float64(top) + math.log(total)
    for k in range(x.size):
        y[k] = np.float32(np.float64(x[k]) - level)


@device
def _softmax(x: Any, y: Any) -> None:
    top = _top(x)
    total = 0.0
    for k in range(x.size):
        e: Any = exp32(x[k] - top)
        y[k] = e
        total += e
    for k in range(x.size):
        y[k] = np.float32(y[k] / total)


@entry(*ROWS)
def softmax_rows(args: Any, tile: Any, scratch: Any) -> None:
    """y = exp(x) over its sum, row by row."""
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[COUNT])):
        x, y = _row_at(args, r)
        _softmax(x, y)


@entry(*ROWS)
def log_softmax_rows(args: Any, tile: Any, scratch: Any) -> None:
    """y = x - log(sum of exp(x)), row by row."""
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[COUNT])):
        x, y = _row_at(args, r)
        _log_softmax(x, y)


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
def layer_norm_rows(args: Any, tile: Any, scratch: Any) -> None:
    """y = (x - mean) / sqrt(variance + epsilon) * scale + bias, row by row; bias may be missing (0)."""
    cols, epsilon = args[COLS], np.float64(float_at(args, EPSILON))
    scale, bias = float32_array(args[SCALE], cols), float32_array(args[BIAS], cols)
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[COUNT])):
        x, y = _row_at(args, r)
        _normalised(x, y, epsilon)
        for k in range(cols):
            y[k] *= scale[k]
        if args[BIAS] != 0:
            for k in range(cols):
                y[k] += bias[k]


@entry(*ROWS)
def instance_norm_rows(args: Any, tile: Any, scratch: Any) -> None:
    """As layer_norm_rows, scale and bias being one number for each row, in turns of `channels`."""
    cols, epsilon = args[COLS], np.float64(float_at(args, EPSILON))
    scale, bias = float32_array(args[SCALE], args[CHANNELS]), float32_array(args[BIAS], args[CHANNELS])
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[COUNT])):
        x, y = _row_at(args, r)
        _normalised(x, y, epsilon)
        factor, term = scale[r % args[CHANNELS]], bias[r % args[CHANNELS]]
        for k in range(cols):
            y[k] = y[k] * factor + term
