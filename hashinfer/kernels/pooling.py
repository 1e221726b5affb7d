"""Max and average pooling over the last two axes of float32 planes. The largest is exact: NaN spreads, as with NumPy's
maximum. The mean of n elements is within n eps of the mean of their magnitudes.

The rows of a window are folded into one line first, whole rows as vectors; then the line's positions. A tile is a few
whole planes.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.vectors import (
    LANES,
    add16,
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
POOL = (
    "x",
    "y",
    "planes",
    "total",
    *(f"{name}_{k}" for k in range(2) for name in AXIS),
    "line",
    "padded",
    "end_0",
    "end_1",
)
X, Y, PLANES, TOTAL, ROWS, COLS, LINE = 0, 1, 2, 3, 4, 4 + len(AXIS), 4 + 2 * len(AXIS)
PADDED, ROW_END, COL_END = range(LINE + 1, LINE + 4)
SIZE, COUNT, KERNEL, STRIDE, DILATION, PAD = range(len(AXIS))
"""planes: of one tile, of `total`; line: elements that all windows along the last axis reach over; padded: whether an
average counts padding; end_0, end_1: elements of padding behind the last."""


SPARE = 2 * LANES
"""Elements behind the line: vectors may end there."""


@inlined
def _least(summed: Any) -> Any:
    return np.float32(0.0) if summed else np.float32(-np.inf)


@inlined
def _folded(summed: Any, a: Any, b: Any) -> Any:
    return add16(a, b) if summed else max16(a, b)


@device
def fold_rows(args: Any, x: Any, o: Any, line: Any, summed: Any) -> None:
    """The largest, or the sum, of each column under the windows of output row o, into the line behind its padding."""
    height, width, at = args[ROWS + SIZE], args[COLS + SIZE], args[COLS + PAD]
    first = o * args[ROWS + STRIDE] - args[ROWS + PAD]
    inside = min(width, args[LINE] - at)
    for col in range(0, inside, LANES):
        count = min(LANES, inside - col)
        value = splat16(_least(summed))
        for k in range(args[ROWS + KERNEL]):
            row = first + k * args[ROWS + DILATION]
            if not 0 <= row < height:
                continue
            if count == LANES:
                value = _folded(summed, value, load16(x, row * width + col))
            else:
                value = _folded(summed, value, load_lanes16(x, row * width + col, 0, count))
        store_lanes16(line, at + col, value, 0, count)


@inlined
def _window(line: Any, o: Any, kernel: Any, stride: Any, dilation: Any, summed: Any) -> Any:
    """The largest element, or the sum, of sixteen windows from the one of output o on. stride: 1 or 2."""
    value = splat16(_least(summed))
    for k in range(kernel):
        at = o * stride + k * dilation
        value = _folded(summed, value, load16(line, at) if stride == 1 else load_even16(line, at))
    return value


@device
def fold_line(line: Any, kernel: Any, stride: Any, dilation: Any, y: Any, summed: Any) -> None:
    """y[o] = the largest, or the sum, of line[o stride + k dilation] over all k < kernel."""
    if stride > 2:
        for o in range(y.size):
            folded = _least(summed)
            for k in range(kernel):
                value = line[o * stride + k * dilation]
                larger = value if value > folded or np.isnan(value) else folded
                folded = folded + value if summed else larger
            y[o] = folded
        return
    for o in range(0, y.size, LANES):
        store_lanes16(y, o, _window(line, o, kernel, stride, dilation, summed), 0, min(LANES, y.size - o))


@inlined
def _held(args: Any, axis: Any, end: Any, o: Any) -> Any:
    """How many elements along an axis the window of output o holds."""
    padded, dilation = args[PADDED] != 0, args[axis + DILATION]
    start = o * args[axis + STRIDE] - args[axis + PAD]
    low = -args[axis + PAD] if padded else 0
    high = args[axis + SIZE] + (args[end] if padded else 0)
    first = max((low - start + dilation - 1) // dilation, 0)
    return np.float32(max(min((high - start + dilation - 1) // dilation, args[axis + KERNEL]) - first, 0))


@device
def _pool(args: Any, tile: Any, scratch: Any, summed: Any) -> None:
    size, out_width = args[ROWS + SIZE] * args[COLS + SIZE], args[COLS + COUNT]
    out_size = args[ROWS + COUNT] * out_width
    line = float32_array(scratch, args[LINE] + SPARE)
    for k in range(line.size):
        line[k] = _least(summed)
    cols = float32_array(scratch + 4 * line.size, out_width)
    if summed:
        for k in range(out_width):
            cols[k] = _held(args, COLS, COL_END, k)
    for plane in range(tile * args[PLANES], min((tile + 1) * args[PLANES], args[TOTAL])):
        x = float32_array(args[X] + 4 * plane * size, size)
        for o in range(args[ROWS + COUNT]):
            fold_rows(args, x, o, line, summed)
            y = float32_array(args[Y] + 4 * (plane * out_size + o * out_width), out_width)
            fold_line(line, args[COLS + KERNEL], args[COLS + STRIDE], args[COLS + DILATION], y, summed)
            if summed:
                rows = _held(args, ROWS, ROW_END, o)
                for k in range(out_width):
                    y[k] /= rows * cols[k]


@entry(*POOL)
def max_pool(args: Any, tile: Any, scratch: Any) -> None:
    """Every output of `planes` planes. scratch: float32 [line + SPARE]."""
    _pool(args, tile, scratch, False)


@entry(*POOL)
def average_pool(args: Any, tile: Any, scratch: Any) -> None:
    """As max_pool, means. scratch: float32 [outputs along the last axis] more."""
    _pool(args, tile, scratch, True)
