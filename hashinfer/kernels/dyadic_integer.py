"""The dyadic scheme for single rows of an int8 weight vector on cores without floating point: ISA `integer`.

As hashinfer.kernels.dyadic_small, in int32. A row is rounded to whole numbers |q| <= 2^B, in units of 2^(T - B) where
2^T is the power of two above its largest input and B = 30 - ceil(log2(inputs)), at most 20. Then u, H u and H w_g are
exact, their products are halved until H of them cannot overflow, and the outputs alone become floats again:

|y - exact| <= scale (2^(T - B - 1) sum over i of |W[i, j]| + 2^-28 width ||u||_2 ||w_g||_2), and two roundings.

A row with an input that is not finite, or whose largest, with or without the weights' scale, is outside
[SMALLEST, LARGEST], is computed directly.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import INPUTS, NO_LIMIT, OUTPUTS, epilogue_of, finish_by, row_start
from hashinfer.kernels.dyadic import magnitude, out_of_range
from hashinfer.kernels.dyadic_small import BUCKETS, COL_SIGNS, PLACES, ROW_SIGNS, WIDTH, W, direct_group, signed
from hashinfer.kernels.dyadic_small import FIELDS as SMALL_FIELDS
from hashinfer.kernels.hadamard import log2_of
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.rows import whole_row
from hashinfer.kernels.vectors import int8_array, int32_array, uint16_array, uintp

FIELDS = (*SMALL_FIELDS, "norms")
NORMS = len(SMALL_FIELDS)
"""norms: int32 [groups], ceil(log2(||w_g||_2)), 0 where that is below 1. Others as dyadic_small has them."""

LARGEST_WIDTH = LARGEST_INPUTS = 2**14
"""Up to which nothing overflows: |H w_g| <= 2^21, |H u| <= 2^30. Scratch: hashinfer.kernels.dyadic_small's."""
_MOST_BITS, _SUM_BITS = 20, 30


@device
def _pass4(v: Any, width: Any, step: Any) -> None:
    """The two stages at distances step and 2 step."""
    start = 0
    while start < width:
        for q in range(step):
            k = start + q
            first, second, third, fourth = uintp(k), uintp(k + step), uintp(k + 2 * step), uintp(k + 3 * step)
            a, b = v[first] + v[second], v[first] - v[second]
            c, d = v[third] + v[fourth], v[third] - v[fourth]
            v[first], v[second] = a + c, b + d
            v[third], v[fourth] = a - c, b - d
        start += 4 * step


@device
def _transform(v: Any, width: Any, bits: Any) -> None:
    """v <- H v, width = 2^bits."""
    while bits >= 2:
        bits -= 2
        _pass4(v, width, 1 << bits)
    if bits == 1:
        for k in range(0, width, 2):
            first, second = uintp(k), uintp(k + 1)
            v[first], v[second] = v[first] + v[second], v[first] - v[second]


@inlined
def _rounded(word: Any, top: Any, bits: Any) -> Any:
    """The float whose bits are `word`, in units of 2^(top - 126 - bits), `top` being at least its exponent field."""
    exponent = word >> 23 & 0xFF
    shift = top - exponent + 24 - bits
    if exponent == 0 or shift > 25:
        return 0
    whole = ((word & 0x7FFFFF | 0x800000) + (1 << (shift - 1))) >> shift
    return -whole if word < 0 else whole


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
    for k in range(width):
        i, total = k, 0
        while i < inputs:
            total += signed(_rounded(words[uintp(i)], top, bits), signs, i)
            i += width
        u[k] = total
        square += np.int64(total) * np.int64(total)
    return _half_bits(square)


@device
def _group(w: Any, base: Any, u: Any, v: Any, width: Any, bits: Any, shift: Any) -> None:
    """V <- H (H w[base : base + width] . u / 2^shift), rounded in between."""
    for k in range(width):
        v[k] = w[base + k]
    _transform(v, width, bits)
    half = np.int64(1) << shift >> 1
    for k in range(width):
        v[k] = np.int32((np.int64(v[k]) * np.int64(u[k]) + half) >> shift)
    _transform(v, width, bits)


@entry(*FIELDS)
def dyadic_integer_i8(args: Any, tile: Any, scratch: Any) -> None:
    """Row `tile`, all outputs."""
    width, inputs, outputs = args[WIDTH], args[INPUTS], args[OUTPUTS]
    w, groups = int8_array(args[W], args[BUCKETS]), args[BUCKETS] // width
    u, v = int32_array(scratch, width), int32_array(scratch + 4 * width, width)
    x, scale = whole_row(args, tile, scratch + 8 * width)
    words, largest = x.view(np.int32), np.int32(0)
    for i in range(inputs):
        largest = max(largest, np.int32(words[i] & np.int32(0x7FFFFFFF)))
    if out_of_range(np.uint32(largest)) or out_of_range(magnitude(np.uint32(largest).view(np.float32) * scale)):
        for g in range(min(groups, outputs)):
            direct_group(args, tile, x, scale, w, g * width, g)
        return
    levels, rows = log2_of(width), 0
    while 1 << rows < inputs:
        rows += 1
    # Of zeros alone any unit will do.
    top, bits = largest >> 23 if largest != 0 else 127, min(_MOST_BITS, _SUM_BITS - rows)
    norm = _fold(words, top, bits, inputs, width, uint16_array(args[ROW_SIGNS], NO_LIMIT), u)
    _transform(u, width, levels)
    places, signs = int32_array(args[PLACES], NO_LIMIT), uint16_array(args[COL_SIGNS], NO_LIMIT)
    norms, start, epilogue = int32_array(args[NORMS], groups), row_start(args, tile), epilogue_of(args)
    for g in range(min(groups, outputs)):
        shift = max(0, levels + norms[g] + norm - _SUM_BITS)
        _group(w, g * width, u, v, width, levels, shift)
        unit = scale * _power_of_two(top - 126 - bits + shift - levels)
        for t in range((outputs - g + groups - 1) // groups):
            j = g + t * groups
            value = np.float32(v[uintp(places[uintp(t)])]) * unit
            finish_by(args, epilogue, start, tile, j, signed(value, signs, j))
