"""One axis of float32 [outer, size, inner] at other places: each output a weighted sum of a few inputs.

Sums run in float32: |error| <= (taps + 1) eps sum |weight x|. A tile is one outer index.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.jit import device, entry
from hashinfer.kernels.vectors import LANES, float32_array, fma16, intp_array, load16, mul16, splat16, store16

RESAMPLE = ("x", "y", "size", "out", "inner", "taps", "index", "weights")
X, Y, SIZE, OUT, INNER, TAPS, INDEX, WEIGHTS = range(len(RESAMPLE))
"""index: intp, weights: float32, [taps, out]; without weights (0) there is one tap, which is copied."""


@device
def _copy(x: Any, y: Any, index: Any, inner: Any) -> None:
    for j in range(index.size):
        source, to = index[j] * inner, j * inner
        for i in range(inner):
            y[to + i] = x[source + i]


@device
def _neighbours(x: Any, y: Any, index: Any, weights: Any, out: Any, taps: Any) -> None:
    for j in range(out):
        y[j] = weights[j] * x[index[j]]
    for t in range(out, taps * out, out):
        for j in range(out):
            y[j] += weights[t + j] * x[index[t + j]]


@device
def _rows(x: Any, y: Any, index: Any, weights: Any, out: Any, taps: Any, inner: Any) -> None:
    whole = inner & ~(LANES - 1)
    for j in range(out):
        to = j * inner
        for i in range(0, whole, LANES):
            total = mul16(load16(x, index[j] * inner + i), splat16(weights[j]))
            for t in range(1, taps):
                at = t * out + j
                total = fma16(load16(x, index[at] * inner + i), splat16(weights[at]), total)
            store16(y, to + i, total)
        for i in range(whole, inner):
            rest = np.float32(0.0)
            for t in range(taps):
                rest += weights[t * out + j] * x[index[t * out + j] * inner + i]
            y[to + i] = rest


@entry(*RESAMPLE)
def resample(args: Any, tile: Any, scratch: Any) -> None:
    """y [outer, out, inner]."""
    size, out, inner, taps = args[SIZE], args[OUT], args[INNER], args[TAPS]
    x = float32_array(args[X] + 4 * tile * size * inner, size * inner)
    y = float32_array(args[Y] + 4 * tile * out * inner, out * inner)
    index, weights = intp_array(args[INDEX], taps * out), float32_array(args[WEIGHTS], taps * out)
    if args[WEIGHTS] == 0:
        _copy(x, y, index, inner)
    elif inner > 1:
        _rows(x, y, index, weights, out, taps, inner)
    else:
        _neighbours(x, y, index, weights, out, taps)
