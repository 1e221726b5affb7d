"""Max pooling over the last two axes of float32 planes, exact: NaN spreads, as with NumPy's maximum.

The rows of a window are folded into one line first, whole rows as vectors; then the line's positions. A tile is a few
whole planes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.vectors import (
    LANES,
    float32_array,
    load16,
    load_even16,
    load_lanes16,
    max16,
    splat16,
    store_lanes16,
)

AXIS = ("size", "count", "kernel", "stride", "dilation", "pad")
"""Of an axis: elements, outputs, and how the window goes along it; pad: elements of padding before the first."""
POOL = ("x", "y", "planes", "total", *(f"{name}_{k}" for k in range(2) for name in AXIS), "line")
X, Y, PLANES, TOTAL, ROWS, COLS, LINE = 0, 1, 2, 3, 4, 4 + len(AXIS), 4 + 2 * len(AXIS)
SIZE, COUNT, KERNEL, STRIDE, DILATION, PAD = range(len(AXIS))
"""planes: of one tile, of `total`; line: elements that all windows along the last axis reach over."""


SPARE = 2 * LANES
"""Elements behind the line: vectors may end there."""


@device
def fold_rows(args: Any, x: Any, o: Any, line: Any) -> None:
    """The largest element of each column under the windows of output row o, into the line behind its padding."""
    height, width, at = args[ROWS + SIZE], args[COLS + SIZE], args[COLS + PAD]
    first = o * args[ROWS + STRIDE] - args[ROWS + PAD]
    inside = min(width, args[LINE] - at)
    for col in range(0, inside, LANES):
        count = min(LANES, inside - col)
        value = splat16(np.float32(-np.inf))
        for k in range(args[ROWS + KERNEL]):
            row = first + k * args[ROWS + DILATION]
            if not 0 <= row < height:
                continue
            if count == LANES:
                value = max16(value, load16(x, row * width + col))
            else:
                value = max16(value, load_lanes16(x, row * width + col, 0, count))
        store_lanes16(line, at + col, value, 0, count)


@inlined
def _window(line: Any, o: Any, kernel: Any, stride: Any, dilation: Any) -> Any:
    """The largest element of sixteen windows from the one of output o on. stride: 1 or 2."""
    value = splat16(np.float32(-np.inf))
    for k in range(kernel):
        at = o * stride + k * dilation
        value = max16(value, load16(line, at) if stride == 1 else load_even16(line, at))
    return value


@device
def fold_line(line: Any, kernel: Any, stride: Any, dilation: Any, y: Any) -> None:
    """y[o] = the largest of line[o stride + k dilation] over all k < kernel."""
    if stride > 2:
        for o in range(y.size):
            largest = np.float32(-np.inf)
            for k in range(kernel):
                value = line[o * stride + k * dilation]
                largest = value if value > largest or np.isnan(value) else largest
            y[o] = largest
        return
    for o in range(0, y.size, LANES):
        store_lanes16(y, o, _window(line, o, kernel, stride, dilation), 0, min(LANES, y.size - o))


@entry(*POOL)
def max_pool(args, tile, scratch):  # type: ignore[no-untyped-def]
    """Every output of `planes` planes. scratch: float32 [line + SPARE]."""
    size, out_width = args[ROWS + SIZE] * args[COLS + SIZE], args[COLS + COUNT]
    out_size = args[ROWS + COUNT] * out_width
    line = float32_array(scratch, args[LINE] + SPARE)
    for k in range(line.size):
        line[k] = np.float32(-np.inf)
    for plane in range(tile * args[PLANES], min((tile + 1) * args[PLANES], args[TOTAL])):
        x = float32_array(args[X] + 4 * plane * size, size)
        for o in range(args[ROWS + COUNT]):
            fold_rows(args, x, o, line)
            y = float32_array(args[Y] + 4 * (plane * out_size + o * out_width), out_width)
            fold_line(line, args[COLS + KERNEL], args[COLS + STRIDE], args[COLS + DILATION], y)
