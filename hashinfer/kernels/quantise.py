"""From float32 and int32 to 8-bit integers and back, by scales and zero points: one for all, or in turns.

An array is [outer, inner]; scales are one for a row, in turns of `period` rows, or, with step 1, one for each element
of a row. Bytes are as in hashinfer.kernels.integer. Quotients and products are rounded to the nearest, halves to even;
NaN becomes the least number. A tile is a few rows.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import NO_LIMIT
from hashinfer.kernels.integer import zero_at
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.vectors import (
    LANES,
    float32_array,
    int32_array,
    load16,
    max16,
    mul16,
    product,
    quotient,
    splat16,
    store16,
    uint8_array,
)

QUANTISE = ("x", "y", "outer", "inner", "rows_per_tile", "flip", "zero", "zeros", "scale", "period", "step")
X, Y, OUTER, INNER, PER_TILE, FLIP, ZERO, ZEROS, SCALE, PERIOD, STEP = range(len(QUANTISE))
"""flip: 128 where the bytes are int8, else 0. zeros: none, one, or as many as scales."""
REQUANTISE = (*QUANTISE, "row_scale", "row_period", "y_scale", "bias", "bias_period")
ROW_SCALE, ROW_PERIOD, Y_SCALE, BIAS, BIAS_PERIOD = range(len(QUANTISE), len(REQUANTISE))
"""A second scale for each row, the scale to divide by, and int32 biases for each row, in turns, or 0. zeros: one."""
RANGE = ("x", "count", "scale", "zero")
RANGE_SCRATCH_BYTES = 8 * LANES

_LARGE, _HALF = np.float32(2.0**17), np.float32(0.5)
_LEVELS = np.float32(255.0)


@inlined
def byte_of(value: Any, zero: Any) -> Any:
    """round(value) + zero, in [0, 255], as uint8. zero: int32 in [0, 255]."""
    # Beyond 2^17 the answer is one of the ends. No sum of floats that a compiler may reorder: it would not round.
    near = value if value >= -_LARGE else -_LARGE
    near = near if near <= _LARGE else _LARGE
    cut = np.int32(near)
    rest = near - np.float32(cut)
    beyond = abs(rest) > _HALF or (abs(rest) == _HALF and cut & np.int32(1) != 0)
    whole = cut + zero + (np.int32(0) if not beyond else (np.int32(-1) if rest < np.float32(0.0) else np.int32(1)))
    whole = whole if whole > np.int32(0) else np.int32(0)
    return np.uint8(whole if whole < np.int32(255) else np.int32(255))


@inlined
def parameters(args: Any, at: Any, flip: Any) -> Any:
    """(scale, zero point) number `at`."""
    zero = zero_at(args[ZERO], at if args[ZEROS] > 1 else 0, flip)
    return float32_array(args[SCALE], NO_LIMIT)[at], zero


@device
def _quantise_row(x: Any, y: Any, scale: Any, zero: Any, flip: Any) -> None:
    for k in range(x.size):
        y[k] = byte_of(quotient(x[k], scale), zero) ^ flip


@entry(*QUANTISE)
def quantise(args: Any, tile: Any, scratch: Any) -> None:
    """y = saturate(round(x / scale) + zero), x float32, y bytes."""
    inner, flip = args[INNER], np.uint8(args[FLIP])
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[OUTER])):
        x, y = float32_array(args[X] + 4 * r * inner, inner), uint8_array(args[Y] + r * inner, inner)
        if args[STEP] == 0:
            scale, zero = parameters(args, r % args[PERIOD], flip)
            _quantise_row(x, y, scale, zero, flip)
            continue
        for k in range(inner):
            scale, zero = parameters(args, k, flip)
            y[k] = byte_of(quotient(x[k], scale), zero) ^ flip


@device
def _dequantise_row(x: Any, y: Any, scale: Any, zero: Any, flip: Any) -> None:
    for k in range(x.size):
        y[k] = np.float32(np.int32(x[k] ^ flip) - zero) * scale


@entry(*QUANTISE)
def dequantise(args: Any, tile: Any, scratch: Any) -> None:
    """y = (x - zero) scale, x bytes, y float32."""
    inner, flip = args[INNER], np.uint8(args[FLIP])
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[OUTER])):
        x, y = uint8_array(args[X] + r * inner, inner), float32_array(args[Y] + 4 * r * inner, inner)
        if args[STEP] == 0:
            scale, zero = parameters(args, r % args[PERIOD], flip)
            _dequantise_row(x, y, scale, zero, flip)
            continue
        for k in range(inner):
            scale, zero = parameters(args, k, flip)
            y[k] = np.float32(np.int32(x[k] ^ flip) - zero) * scale


@device
def _requantise_row(x: Any, y: Any, bias: Any, factor: Any, zero: Any, flip: Any) -> None:
    for k in range(x.size):
        y[k] = byte_of(product(np.float32(np.float64(x[k]) + bias), factor), zero) ^ flip


@entry(*REQUANTISE)
def requantise(args: Any, tile: Any, scratch: Any) -> None:
    """y = saturate(round((x + bias) row_scale scale / y_scale) + zero), x int32, y bytes."""
    inner, flip, scales = args[INNER], np.uint8(args[FLIP]), float32_array(args[SCALE], NO_LIMIT)
    row_scales, y_scale = float32_array(args[ROW_SCALE], NO_LIMIT), float32_array(args[Y_SCALE], 1)[0]
    zero, biases = zero_at(args[ZERO], 0, flip), int32_array(args[BIAS], NO_LIMIT)
    for r in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[OUTER])):
        x, y = int32_array(args[X] + 4 * r * inner, inner), uint8_array(args[Y] + r * inner, inner)
        bias = np.float64(biases[r % args[BIAS_PERIOD]]) if args[BIAS] != 0 else 0.0
        of_row = row_scales[r % args[ROW_PERIOD]]
        if args[STEP] == 0:
            _requantise_row(x, y, bias, quotient(product(of_row, scales[r % args[PERIOD]]), y_scale), zero, flip)
        else:
            for k in range(inner):
                factor = quotient(product(of_row, scales[k]), y_scale)
                y[k] = byte_of(product(np.float32(np.float64(x[k]) + bias), factor), zero) ^ flip


@entry(*RANGE)
def dynamic_range(args: Any, tile: Any, scratch: Any) -> None:
    """The scale and the zero point by which uint8 hold 0 and all of x. scratch: float32 [2, 16]."""
    x, count, ends = float32_array(args[0], args[1]), args[1], float32_array(scratch, 2 * LANES)
    high, low, minus = splat16(np.float32(0.0)), splat16(np.float32(0.0)), splat16(np.float32(-1.0))
    for k in range(0, count & ~(LANES - 1), LANES):
        value = load16(x, k)
        high, low = max16(high, value), max16(low, mul16(value, minus))
    for k in range(count & ~(LANES - 1), count):
        value = splat16(x[k])
        high, low = max16(high, value), max16(low, mul16(value, minus))
    store16(ends, 0, high)
    store16(ends, LANES, low)
    above = below = np.float32(0.0)
    for k in range(LANES):
        # Once one is NaN it stays.
        above = ends[k] if not np.isnan(above) and not ends[k] <= above else above
        below = ends[LANES + k] if not np.isnan(below) and not ends[LANES + k] <= below else below
    scale = quotient(above + below, _LEVELS)
    scale = np.float32(1.0) if scale == np.float32(0.0) else scale
    float32_array(args[2], 1)[0] = scale
    uint8_array(args[3], 1)[0] = byte_of(quotient(below, scale), np.int32(0))
