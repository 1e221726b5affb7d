"""Rows of the left operand: read from a matrix, or gathered as the patches of an image (convolution)."""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import (
    IMAGE_ROWS,
    INPUTS,
    NO_LIMIT,
    PATCHES,
    X_ROW_STRIDE,
    X_SCALE,
    X,
    float_at,
    row_at,
)
from hashinfer.kernels.jit import device, inlined
from hashinfer.kernels.vectors import float32_array, intp_array

PATCH_FIELDS = (
    "channels",
    "height",
    "width",
    "kernel_height",
    "kernel_width",
    "stride_height",
    "stride_width",
    "dilation_height",
    "dilation_width",
    "pad_top",
    "pad_left",
    "out_width",
    "image_stride",
)
"""Of type intp, at the address that is the `patches` argument; 0 there means that x is a plain matrix."""


@inlined
def corner(shape: Any, pixel: Any) -> Any:
    """The image's row and column where the patch under an output pixel begins, in the padding or not."""
    return pixel // shape[11] * shape[5] - shape[9], pixel % shape[11] * shape[6] - shape[10]


@inlined
def entry_at(i: Any, kh: Any, kw: Any) -> Any:
    """(channel, row, column) in a patch of its entry i."""
    return i // (kh * kw), i % (kh * kw) // kw, i % kw


@inlined
def entry_after(channel: Any, ky: Any, kx: Any, kh: Any, kw: Any) -> Any:
    """What entry_at says of the entry behind this one."""
    if kx + 1 < kw:
        return channel, ky, kx + 1
    if ky + 1 < kh:
        return channel, ky + 1, 0
    return channel + 1, 0, 0


@device
def read_rows(args: Any, r0: Any, count: Any, i0: Any, length: Any, out: Any) -> None:
    """out[c * length + i] = x[r0 + c, i0 + i] * x_scale, of rows that there are; padding reads as zero."""
    x, scale = float32_array(args[X], NO_LIMIT), float_at(args, X_SCALE)
    if args[PATCHES] == 0:
        for c in range(count):
            at, source = c * length, (r0 + c) * args[X_ROW_STRIDE] + i0
            for i in range(length):
                out[at + i] = x[source + i] * scale
        return
    shape = intp_array(args[PATCHES], len(PATCH_FIELDS))
    whole = i0 == 0 and length == shape[0] * shape[3] * shape[4]
    for c in range(count):
        if whole:
            _read_whole_patch(x, scale, shape, r0 + c, args[IMAGE_ROWS], out, c * length)
        else:
            _read_patch(x, scale, shape, r0 + c, args[IMAGE_ROWS], i0, length, out, c * length)


@inlined
def whole_row(args: Any, r: Any, room: Any) -> Any:
    """Row r of x and what it is to be multiplied by; room: address of float32 [inputs], where patches are gathered."""
    if args[PATCHES] == 0:
        return row_at(args, r)
    x = float32_array(room, args[INPUTS])
    read_rows(args, r, 1, 0, args[INPUTS], x)
    return x, np.float32(1.0)


@device
def _read_whole_patch(x: Any, scale: Any, shape: Any, r: Any, image_rows: Any, out: Any, at: Any) -> None:
    """All entries of the patch under output pixel r, in (channel, kh, kw) order."""
    height, width, kh, kw, dy, dx = shape[1], shape[2], shape[3], shape[4], shape[7], shape[8]
    top, left = corner(shape, r % image_rows)
    image_at = r // image_rows * shape[12]
    within = left >= 0 and left + (kw - 1) * dx < width
    for channel in range(shape[0]):
        base = image_at + channel * height * width
        for ky in range(kh):
            row = top + ky * dy
            if not 0 <= row < height:
                for kx in range(kw):
                    out[at + kx] = np.float32(0.0)
            elif within:
                source = base + row * width + left
                for kx in range(kw):
                    out[at + kx] = x[source + kx * dx] * scale
            else:
                for kx in range(kw):
                    col = left + kx * dx
                    out[at + kx] = x[base + row * width + col] * scale if 0 <= col < width else np.float32(0.0)
            at += kw


@device
def _read_patch(
    x: Any, scale: Any, shape: Any, r: Any, image_rows: Any, i0: Any, length: Any, out: Any, at: Any
) -> None:
    """Entries i0 ... of the patch under output pixel r, in (channel, kh, kw) order."""
    height, width, kh, kw, dy, dx = shape[1], shape[2], shape[3], shape[4], shape[7], shape[8]
    top, left = corner(shape, r % image_rows)
    base = r // image_rows * shape[12]
    channel, ky, kx = entry_at(i0, kh, kw)
    for i in range(length):
        row, col = top + ky * dy, left + kx * dx
        inside = 0 <= row < height and 0 <= col < width
        out[at + i] = x[base + (channel * height + row) * width + col] * scale if inside else np.float32(0.0)
        channel, ky, kx = entry_after(channel, ky, kx, kh, kw)
