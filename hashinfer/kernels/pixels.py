"""Convolution with sixteen neighbouring output pixels as lanes: patches read as vectors, outputs written as vectors.

A tile never reaches from one image into the next. Rows of the product are output pixels, numbered over all images.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import (
    ACTIVATION,
    ALPHA,
    BIAS,
    BIAS_COL_STRIDE,
    BIAS_ROW_STRIDE,
    IMAGE_ROWS,
    NO_LIMIT,
    PATCHES,
    RELU,
    X_SCALE,
    Y_COL_STRIDE,
    X,
    Y,
    finish,
    float_at,
    row_start,
)
from hashinfer.kernels.jit import inlined
from hashinfer.kernels.rows import PATCH_FIELDS, corner, entry_after, entry_at
from hashinfer.kernels.vectors import (
    add16,
    float32_array,
    int32_array,
    intp_array,
    load16,
    load_lanes16,
    mul16,
    relu16,
    splat16,
    store16,
    store_lanes16,
)

PIXELS = 16
PLACES_BYTES = 4 * 2 * PIXELS
"""Scratch of read_pixels: where the patch of each lane begins."""


@inlined
def read_pixels(
    args: Any, image: Any, p0: Any, count: Any, i0: Any, length: Any, out: Any, at: Any, step: Any, scratch: Any
) -> None:
    """out[at + i step + c] = entry i0 + i of the patch under pixel p0 + c of an image, times x_scale, for 16 lanes c.

    Lanes from `count` on hold numbers of no account. scratch: PLACES_BYTES.
    """
    shape, x = intp_array(args[PATCHES], len(PATCH_FIELDS)), float32_array(args[X], NO_LIMIT)
    height, width, kh, kw, dy, dx = shape[1], shape[2], shape[3], shape[4], shape[7], shape[8]
    tops, lefts = int32_array(scratch, PIXELS), int32_array(scratch + 4 * PIXELS, PIXELS)
    in_line = shape[6] == 1 and count == PIXELS and p0 % shape[11] + PIXELS <= shape[11]
    if not in_line:
        for c in range(PIXELS):
            top, left = corner(shape, p0 + min(c, count - 1))
            tops[c], lefts[c] = np.int32(top), np.int32(left)
    top, left = corner(shape, p0)
    scale = splat16(float_at(args, X_SCALE))
    channel, ky, kx = entry_at(i0, kh, kw)
    for i in range(length):
        base, to = image * shape[12] + channel * height * width, at + i * step
        row, col = top + ky * dy, left + kx * dx
        if not in_line:
            for c in range(PIXELS):
                row, col = tops[c] + ky * dy, lefts[c] + kx * dx
                there = 0 <= row < height and 0 <= col < width
                out[to + c] = x[base + row * width + col] if there else np.float32(0.0)
            store16(out, to, mul16(load16(out, to), scale))
        elif not 0 <= row < height:
            store16(out, to, splat16(np.float32(0.0)))
        elif col >= 0 and col + PIXELS <= width:
            store16(out, to, mul16(load16(x, base + row * width + col), scale))
        else:
            first = min(max(0, -col), PIXELS)
            inside = max(0, min(PIXELS, width - col) - first)
            store16(out, to, mul16(load_lanes16(x, base + row * width + col, first, inside), scale))
        channel, ky, kx = entry_after(channel, ky, kx, kh, kw)


@inlined
def finish_pixels(args: Any, image: Any, p0: Any, count: Any, j: Any, total: Any, spare: Any) -> None:
    """Write output j of `count` pixels from p0 on, as finish does. spare: float32 [16] of scratch."""
    r = image * args[IMAGE_ROWS] + p0
    start = row_start(args, r)
    if args[ACTIVATION] > RELU or (args[BIAS] != 0 and args[BIAS_ROW_STRIDE] != 0):
        store16(spare, 0, total)
        for c in range(count):
            finish(args, start + c, r + c, j, spare[c])
        return
    value = mul16(total, splat16(float_at(args, ALPHA)))
    if args[BIAS] != 0:
        value = add16(value, splat16(float32_array(args[BIAS], NO_LIMIT)[j * args[BIAS_COL_STRIDE]]))
    if args[ACTIVATION] == RELU:
        value = relu16(value)
    y, to = float32_array(args[Y], NO_LIMIT), start + j * args[Y_COL_STRIDE]
    if count == PIXELS:
        store16(y, to, value)
    else:
        store_lanes16(y, to, value, 0, count)
