"""The dyadic scheme for single rows of an int8 weight vector on cores without floating point: ISA `integer`.

As hashinfer.kernels.dyadic_small, in int32. A row is rounded to whole numbers |q| <= 2^B, in units of 2^(T - B) where
2^T is the power of two above its largest input and B = 30 - ceil(log2(inputs)), at most 20. Then u, H u and H w_g are
exact, their products are halved until H of them cannot overflow, and the outputs alone become floats again:

|y - exact| <= scale (2^(T - B - 1) sum over i of |W[i, j]| + 2^-28 width ||u||_2 ||w_g||_2), and two roundings.

A row with an input that is not finite, or whose largest, with or without the weights' scale, is outside
[SMALLEST, LARGEST], is computed directly.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import (
    INPUTS,
    NO_LIMIT,
    OUTPUTS,
    PATCHES,
    X_ROW_STRIDE,
    X_SCALE,
    X,
    epilogue_of,
    finish_by,
    float_at,
    row_start,
)
from hashinfer.kernels.dyadic import out_of_range
from hashinfer.kernels.dyadic_small import (
    BUCKETS,
    COL_SIGNS,
    PLACES,
    ROW_SIGNS,
    WIDTH,
    W,
    direct_group,
    magnitude,
    signed,
)
from hashinfer.kernels.dyadic_small import FIELDS as SMALL_FIELDS
from hashinfer.kernels.hadamard import log2_of
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.rows import read_rows
from hashinfer.kernels.vectors import float32_array, int8_array, int32_array, uint16_array, uintp

FIELDS = (*SMALL_FIELDS, "norms")
NORMS = len(SMALL_FIELDS)
"""norms: int32 [groups], ceil(log2(||w_g||_2)), 0 where that is below 1. Others as dyadic_small has them."""

LARGEST_WIDTH = LARGEST_INPUTS = 2**14
"""Up to which nothing overflows: |H w_g| <= 2^21, |H u| <= 2^30. Scratch: hashinfer.kernels.dyadic_small's."""
_MOST_BITS, _SUM_BITS = 20, 30


@device
def _pass4(v: Any, width: Any, step: Any) -> None:
    """The two stages at distances step and 2 step."""
    start = np.int32(0)
    while start < width:
        for k in range(step):
            at = np.uint32(start + k)
            second, third = np.uint32(at + np.uint32(step)), np.uint32(at + np.uint32(2 * step))
            fourth = np.uint32(third + np.uint32(step))
            a, b = np.int32(v[at] + v[second]), np.int32(v[at] - v[second])
            c, d = np.int32(v[third] + v[fourth]), np.int32(v[third] - v[fourth])
            v[at], v[second] = np.int32(a + c), np.int32(b + d)
            v[third], v[fourth] = np.int32(a - c), np.int32(b - d)
        start = np.int32(start + 4 * step)


@device
def _transform(v: Any, width: Any, bits: Any) -> None:
    """v <- H v, width = 2^bits."""
    while bits >= 2:
        bits -= 2
        _pass4(v, width, np.int32(1 << bits))
    if bits == 1:
        for k in range(np.int32(width >> 1)):
            at = np.uint32(2 * k)
            a, b = v[at], v[np.uint32(at + 1)]
            v[at], v[np.uint32(at + 1)] = np.int32(a + b), np.int32(a - b)


@inlined
def _rounded(word: Any, top: Any, bits: Any) -> Any:
    """The float whose bits are `word`, in units of 2^(top - 126 - bits), `top` being at least its exponent field."""
    exponent, mantissa = np.int32(word >> 23) & np.int32(0xFF), np.int32(word & 0x7FFFFF)
    shift = np.int32(top - exponent + 24 - bits)
    if exponent == 0 or shift > 25:
        return np.int32(0)
    whole = np.int32((np.int32(mantissa | 0x800000) + np.int32(1 << (shift - 1))) >> shift)
    return np.int32(-whole) if word < 0 else whole


@inlined
def _power_of_two(exponent: Any) -> Any:
    """2^exponent as float32, exponent in [-126, 127]."""
    return np.uint32(np.uint32(exponent + 127) << np.uint32(23)).view(np.float32)


@inlined
def _half_bits(square: Any) -> Any:
    """ceil(log2(sqrt(square))) of an int64, 0 for 0."""
    bits = 0
    while square > np.int64(1) << bits:
        bits += 1
    return (bits + 1) >> 1


@device
def _fold(words: Any, top: Any, bits: Any, inputs: Any, width: Any, signs: Any, u: Any) -> Any:
    """u[k] = sum of s(i) q[i] over i = k (mod width); returns ceil(log2(||u||_2))."""
    square = np.int64(0)
    for k in range(np.int32(width)):
        i, total = np.uint32(k), np.int32(0)
        while i < inputs:
            total = np.int32(total + signed(_rounded(words[i], top, bits), signs, i))
            i = np.uint32(i + width)
        u[np.uint32(k)] = total
        square += np.int64(total) * np.int64(total)
    return _half_bits(square)


@device
def _group(w: Any, base: Any, u: Any, v: Any, width: Any, bits: Any, shift: Any) -> None:
    """V <- H (H w[base : base + width] . u / 2^shift), rounded in between."""
    for k in range(width):
        v[np.uint32(k)] = np.int32(w[np.uint32(base + k)])
    _transform(v, width, bits)
    half = np.int64(1) << shift >> 1
    for k in range(width):
        at = np.uint32(k)
        v[at] = np.int32((np.int64(v[at]) * np.int64(u[at]) + half) >> shift)
    _transform(v, width, bits)


@entry(*FIELDS)
def dyadic_integer_i8(args: Any, tile: Any, scratch: Any) -> None:
    """Row `tile`, all outputs."""
    width, inputs, outputs = args[WIDTH], args[INPUTS], args[OUTPUTS]
    w, scale, groups = int8_array(args[W], args[BUCKETS]), float_at(args, X_SCALE), args[BUCKETS] // width
    u, v = int32_array(scratch, width), int32_array(scratch + 4 * width, width)
    address = args[X] + 4 * tile * args[X_ROW_STRIDE]
    if args[PATCHES] != 0:
        address = scratch + 8 * width
        read_rows(args, tile, 1, 0, inputs, float32_array(address, inputs))
        scale = np.float32(1.0)
    words, largest = int32_array(address, inputs), np.int32(0)
    for i in range(inputs):
        largest = max(largest, np.int32(words[i] & np.int32(0x7FFFFFFF)))
    if out_of_range(np.uint32(largest)) or out_of_range(magnitude(np.uint32(largest).view(np.float32) * scale)):
        for g in range(min(groups, outputs)):
            direct_group(args, tile, float32_array(address, inputs), scale, w, g * width, g)
        return
    levels, rows = log2_of(width), 0
    while 1 << rows < inputs:
        rows += 1
    # Of zeros alone any unit will do.
    top, bits = largest >> 23 if largest != 0 else 127, min(_MOST_BITS, _SUM_BITS - rows)
    norm = _fold(words, top, bits, np.uint32(inputs), np.uint32(width), uint16_array(args[ROW_SIGNS], NO_LIMIT), u)
    narrow = np.int32(width)
    _transform(u, narrow, levels)
    places, signs = int32_array(args[PLACES], NO_LIMIT), uint16_array(args[COL_SIGNS], NO_LIMIT)
    norms, start, epilogue = int32_array(args[NORMS], groups), row_start(args, tile), epilogue_of(args)
    for g in range(min(groups, outputs)):
        shift = max(0, levels + norms[g] + norm - _SUM_BITS)
        _group(w, np.int32(g * width), u, v, narrow, levels, shift)
        unit = scale * _power_of_two(top - 126 - bits + shift - levels)
        j = uintp(g)
        for t in range(np.int32((outputs - g + groups - 1) // groups)):
            value = np.float32(v[np.uint32(places[np.uint32(t)])]) * unit
            finish_by(args, epilogue, start, tile, j, signed(value, signs, np.uint32(j)))
            j = uintp(j + uintp(groups))
