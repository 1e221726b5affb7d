"""Rows of the left operand: read from a matrix, or gathered as the patches of an image (convolution)."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import IMAGE_ROWS, NO_LIMIT, PATCHES, ROWS, X_ROW_STRIDE, X_SCALE, X, float_at
from hashinfer.kernels.jit import device
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
"""Int64 numbers that the `patches` argument points at; 0 there means that x is a plain matrix."""


@device
def read_rows(args: Any, r0: Any, count: Any, i0: Any, length: Any, out: Any) -> None:
    """out[c * length + i] = x[r0 + c, i0 + i] * x_scale; rows past the end and padding read as zero."""
    x, scale = float32_array(args[X], NO_LIMIT), float_at(args, X_SCALE)
    if args[PATCHES] == 0:
        for c in range(count):
            at, source = c * length, (r0 + c) * args[X_ROW_STRIDE] + i0
            if r0 + c < args[ROWS]:
                for i in range(length):
                    out[at + i] = x[source + i] * scale
            else:
                for i in range(length):
                    out[at + i] = np.float32(0.0)
        return
    shape = intp_array(args[PATCHES], len(PATCH_FIELDS))
    if i0 == 0 and length == shape[0] * shape[3] * shape[4]:
        for c in range(count):
            if r0 + c < args[ROWS]:
                _read_whole_patch(x, scale, shape, r0 + c, args[IMAGE_ROWS], out, c * length)
            else:
                for i in range(length):
                    out[c * length + i] = np.float32(0.0)
        return
    for c in range(count):
        _read_patch(x, scale, shape, r0 + c, args[ROWS], args[IMAGE_ROWS], i0, length, out, c * length)


@device
def _read_whole_patch(x: Any, scale: Any, shape: Any, r: Any, image_rows: Any, out: Any, at: Any) -> None:
    """All entries of the patch under output pixel r, in (channel, kh, kw) order."""
    height, width, kh, kw, dy, dx = shape[1], shape[2], shape[3], shape[4], shape[7], shape[8]
    image, pixel = r // image_rows, r % image_rows
    top, left = (pixel // shape[11]) * shape[5] - shape[9], (pixel % shape[11]) * shape[6] - shape[10]
    within = left >= 0 and left + (kw - 1) * dx < width
    for channel in range(shape[0]):
        base = image * shape[12] + channel * height * width
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
    x: Any, scale: Any, shape: Any, r: Any, rows: Any, image_rows: Any, i0: Any, length: Any, out: Any, at: Any
) -> None:
    """Entries i0 ... of the patch under output pixel r, in (channel, kh, kw) order."""
    height, width, kh, kw = shape[1], shape[2], shape[3], shape[4]
    image, pixel = r // image_rows, r % image_rows
    top = (pixel // shape[11]) * shape[5] - shape[9]
    left = (pixel % shape[11]) * shape[6] - shape[10]
    dy, dx = shape[7], shape[8]
    base = image * shape[12]
    area = kh * kw
    channel, rest = i0 // area, i0 % area
    ky, kx = rest // kw, rest % kw
    for i in range(length):
        row, col = top + ky * dy, left + kx * dx
        inside = r < rows and 0 <= row < height and 0 <= col < width
        out[at + i] = x[base + (channel * height + row) * width + col] * scale if inside else np.float32(0.0)
        kx += 1
        if kx == kw:
            kx = 0
            ky += 1
            if ky == kh:
                ky = 0
                channel += 1
