"""Convolution with few maps in a group: plane by plane, the image's pixels as lanes, W read as it lies.

For each output plane its input planes are copied into scratch, with their padding: no vector looks for an edge. Each
output sums its inputs in order: |error| <= inputs eps sum |x| |W|. Of whole numbers whose sums stay below 2^24 it is
exact. A tile is one output plane.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import ACTIVATION, BIAS, NO_LIMIT, PRODUCT, RELU, X, Y, activate, epilogue_of
from hashinfer.kernels.blocks import store64
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.jit import device, entry
from hashinfer.kernels.pooling import AXIS, COUNT, KERNEL, PAD, SIZE, STRIDE
from hashinfer.kernels.vectors import (
    LANES,
    float32_array,
    fma16,
    int32_array,
    intp_array,
    load16,
    load_even16,
    relu16,
    splat16,
    store16,
)

DEPTHWISE = (
    *(*PRODUCT, "w", "taps", "maps", "inner", "outer", "whole", "lines", "line"),
    *(f"{name}_{k}" for k in range(2) for name in AXIS),
)
W, TAPS, MAPS, INNER, OUTER, WHOLE, LINES, LINE, ROWS = range(len(PRODUCT), len(PRODUCT) + 9)
COLS = ROWS + len(AXIS)
"""maps: output planes of an image; inner, outer: input and output planes of a group. whole: y is int32, and there is no
bias and no activation. lines, line: rows and columns that all windows reach over. w: [maps, inner, rows, columns].
taps: intp [inner, rows, columns], for each weight how far behind the window's first element its input lies."""


SPARE = 192
"""Floats behind the planes: vectors may end there."""
TOGETHER = 4 * LANES
"""Outputs that are summed at once."""


def scratch_bytes(inner: int, lines: int, line: int, height: int) -> int:
    """Scratch of a tile whose output plane has `height` rows."""
    return 4 * (inner * lines * line + SPARE + height * line + TOGETHER)


@device
def copy_planes(args: Any, x: Any, planes: Any) -> None:
    """planes[inner, lines, line] = x[inner, height, width] behind its padding; what is outside the image is 0."""
    height, width, lines, line = args[ROWS + SIZE], args[COLS + SIZE], args[LINES], args[LINE]
    top, left = args[ROWS + PAD], args[COLS + PAD]
    # Where all windows end within the padding there is nothing to copy.
    inside = max(0, min(width, line - left))
    clear(planes)
    for channel in range(args[INNER]):
        for row in range(min(height, lines - top)):
            to, source = (channel * lines + top + row) * line + left, (channel * height + row) * width
            for col in range(0, inside & ~(LANES - 1), LANES):
                store16(planes, to + col, load16(x, source + col))
            for col in range(inside & ~(LANES - 1), inside):
                planes[to + col] = x[source + col]


@device
def sum_windows(planes: Any, at: Any, w: Any, taps: Any, sums: Any, count: Any) -> None:
    """sums[k] = the window that begins at planes[at + k], for k < count and for some more, to whole vectors."""
    for first in range(0, count, TOGETHER):
        a0 = a1 = a2 = a3 = splat16(np.float32(0.0))
        for k in range(taps.size):
            weight, source = splat16(w[k]), at + first + taps[k]
            a0 = fma16(load16(planes, source), weight, a0)
            a1 = fma16(load16(planes, source + 16), weight, a1)
            a2 = fma16(load16(planes, source + 32), weight, a2)
            a3 = fma16(load16(planes, source + 48), weight, a3)
        store64(sums, first, a0, a1, a2, a3)


@device
def sum_every_second(planes: Any, at: Any, w: Any, taps: Any, sums: Any, count: Any) -> None:
    """As sum_windows, of the windows that begin at planes[at + 2 k]."""
    for first in range(0, count, TOGETHER // 2):
        a0 = a1 = splat16(np.float32(0.0))
        for k in range(taps.size):
            weight, source = splat16(w[k]), at + 2 * first + taps[k]
            a0 = fma16(load_even16(planes, source), weight, a0)
            a1 = fma16(load_even16(planes, source + 32), weight, a1)
        store16(sums, first, a0)
        store16(sums, first + 16, a1)


@device
def sum_some(planes: Any, at: Any, w: Any, taps: Any, sums: Any, count: Any, stride: Any) -> None:
    """As sum_windows, of the windows that begin at planes[at + k stride]."""
    for k in range(count):
        total = np.float32(0.0)
        for t in range(taps.size):
            total += w[t] * planes[at + k * stride + taps[t]]
        sums[k] = total


@device
def _finish(args: Any, sums: Any, at: Any, y_at: Any, bias: Any) -> None:
    """A row of outputs from sums[at] on."""
    width, kind = args[COLS + COUNT], args[ACTIVATION]
    alpha, a, b = epilogue_of(args)
    if args[WHOLE] != 0:
        found = int32_array(y_at, width)
        for k in range(width):
            found[k] = np.int32(sums[at + k])
        return
    y, whole = float32_array(y_at, width), width & ~(LANES - 1) if kind <= RELU else 0
    for k in range(0, whole, LANES):
        value = fma16(load16(sums, at + k), splat16(alpha), splat16(bias))
        store16(y, k, relu16(value) if kind == RELU else value)
    for k in range(whole, width):
        y[k] = activate(sums[at + k] * alpha + bias, kind, a, b)


@entry(*DEPTHWISE)
def depthwise(args: Any, tile: Any, scratch: Any) -> None:
    """Output plane `tile`, of all planes of all images. scratch: scratch_bytes."""
    maps, inner, outer, line = args[MAPS], args[INNER], args[OUTER], args[LINE]
    image, plane = tile // maps, tile % maps
    size, count = args[ROWS + SIZE] * args[COLS + SIZE], inner * args[ROWS + KERNEL] * args[COLS + KERNEL]
    first = (image * (maps // outer) + plane // outer) * inner
    taps, planes = intp_array(args[TAPS], count), float32_array(scratch, inner * args[LINES] * line + SPARE)
    height, width = args[ROWS + COUNT], args[COLS + COUNT]
    sums = float32_array(scratch + 4 * planes.size, height * line + TOGETHER)
    copy_planes(args, float32_array(args[X] + 4 * first * size, inner * size), planes)
    w = float32_array(args[W] + 4 * plane * count, count)
    bias = float32_array(args[BIAS], NO_LIMIT)[plane] if args[BIAS] != 0 else np.float32(0.0)
    down, across = args[ROWS + STRIDE], args[COLS + STRIDE]
    in_line = down == 1 and across == 1
    if in_line:
        sum_windows(planes, 0, w, taps, sums, (height - 1) * line + width)
    for o in range(height):
        if across == 1 and not in_line:
            sum_windows(planes, o * down * line, w, taps, sums, width)
        elif across == 2:
            sum_every_second(planes, o * down * line, w, taps, sums, width)
        elif across > 2:
            sum_some(planes, o * down * line, w, taps, sums, width, across)
        _finish(args, sums, o * line if in_line else 0, args[Y] + 4 * (tile * height + o) * width, bias)
