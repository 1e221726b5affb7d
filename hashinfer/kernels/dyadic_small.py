"""The dyadic scheme for single rows where memory is dear and there are no vectors: ISA `small`.

As hashinfer.kernels.dyadic, with its error bound, but a group at a time and in single floats: V <- H w_g, V <- V . H u
/ width, V <- H V, y[t G + g] = r(j) V[perm(t)]. H w_g is taken on the way and not held, so that w is the one
large constant; outputs go where they belong as they come, each a signed sum over the last stages of H.

Indices are int32, and unsigned where they meet an array, so that 32-bit cores compute them in one word and nothing asks
whether they are negative.

A row whose folded inputs are not finite, or whose largest is outside [SMALLEST, LARGEST], is computed directly. Every
weight is finite: such matrices alone come here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import (
    INPUTS,
    NO_LIMIT,
    OUTPUTS,
    PATCHES,
    PRODUCT,
    X_ROW_STRIDE,
    X_SCALE,
    X,
    epilogue_of,
    finish,
    finish_by,
    float_at,
    row_start,
)
from hashinfer.kernels.dyadic import out_of_range
from hashinfer.kernels.hadamard import log2_of, parity
from hashinfer.kernels.hashing import weight
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.rows import read_rows
from hashinfer.kernels.vectors import columns8, float32_array, int8_array, int32_array, uint16_array

FIELDS = (*PRODUCT, "w", "buckets", "width", "places", "row_signs", "col_signs")
W, BUCKETS, WIDTH, PLACES, ROW_SIGNS, COL_SIGNS = range(len(PRODUCT), len(FIELDS))
"""As in hashinfer.kernels.dyadic."""


def small_scratch_bytes(width: int, gathered: int) -> int:
    """Scratch of dyadic_small, and of dyadic_integer: u, V, and the inputs of a row that are gathered from patches."""
    return 4 * (2 * width + gathered)


@inlined
def _load8(v: Any, at: Any, step: Any) -> Any:
    """v[at], v[at + step], ... as floats, of floats or of stored weights."""
    p = at + 4 * step
    return (
        weight(v, np.uint32(at)),
        weight(v, np.uint32(at + step)),
        weight(v, np.uint32(at + 2 * step)),
        weight(v, np.uint32(at + 3 * step)),
        weight(v, np.uint32(p)),
        weight(v, np.uint32(p + step)),
        weight(v, np.uint32(p + 2 * step)),
        weight(v, np.uint32(p + 3 * step)),
    )


@inlined
def _store8(v: Any, at: Any, step: Any, values: Any) -> None:
    p = at + 4 * step
    v[np.uint32(at)], v[np.uint32(at + step)] = values[0], values[1]
    v[np.uint32(at + 2 * step)], v[np.uint32(at + 3 * step)] = values[2], values[3]
    v[np.uint32(p)], v[np.uint32(p + step)] = values[4], values[5]
    v[np.uint32(p + 2 * step)], v[np.uint32(p + 3 * step)] = values[6], values[7]


@inlined
def _transformed8(values: Any) -> Any:
    a, b, c, d, e, f, g, h = values
    a, b, c, d, e, f, g, h = a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
    a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
    return a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h


@inlined
def _plus(a: Any, b: Any) -> Any:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3], a[4] + b[4], a[5] + b[5], a[6] + b[6], a[7] + b[7]


@inlined
def _minus(a: Any, b: Any) -> Any:
    return a[0] - b[0], a[1] - b[1], a[2] - b[2], a[3] - b[3], a[4] - b[4], a[5] - b[5], a[6] - b[6], a[7] - b[7]


@inlined
def _times(a: Any, b: Any) -> Any:
    return a[0] * b[0], a[1] * b[1], a[2] * b[2], a[3] * b[3], a[4] * b[4], a[5] * b[5], a[6] * b[6], a[7] * b[7]


@device
def _first8(x: Any, base: Any, v: Any, step: Any) -> None:
    """v <- the three widest stages of x[base : base + 8 step]. step: a multiple of 4."""
    for k in range(np.int32(step >> 2)):
        at = np.int32(4 * k)
        columns8(x, np.int32(base + at), v, at, step)


@device
def _pass8(v: Any, width: Any, step: Any) -> None:
    """The three stages at distances step, 2 step and 4 step. step: a multiple of 4."""
    start = np.int32(0)
    while start < width:
        for k in range(np.int32(step >> 2)):
            at = np.int32(start + 4 * k)
            columns8(v, at, v, at, step)
        start = np.int32(start + 8 * step)


@device
def _pass2(v: Any, width: Any, step: Any) -> None:
    """The stage at distance step."""
    start = np.int32(0)
    while start < width:
        for k in range(step):
            at = np.int32(start + k)
            a, b = v[np.uint32(at)], v[np.uint32(at + step)]
            v[np.uint32(at)], v[np.uint32(at + step)] = a + b, a - b
        start = np.int32(start + 2 * step)


@device
def _low_stages(v: Any, width: Any, bits: Any) -> None:
    """The stages at distances 1, 2, ... 2^(bits - 1)."""
    for b in range(bits):
        _pass2(v, width, np.int32(1 << b))


@inlined
def _middle_bits(bits: Any) -> Any:
    """How many of 6 stages or more are done among neighbours, in one pass; threes and at most one are left over."""
    return 3 if bits % 3 == 0 else 4


@device
def _high_stages(x: Any, base: Any, v: Any, width: Any, bits: Any) -> None:
    """v <- the stages of x[base : base + width] that are not among neighbours, of bits >= 6."""
    left = bits - 3
    _first8(x, base, v, np.int32(1 << left))
    while left - 3 >= _middle_bits(bits):
        left -= 3
        _pass8(v, width, np.int32(1 << left))
    if left > _middle_bits(bits):
        _pass2(v, width, np.int32(1 << (left - 1)))


@device
def _middle(v: Any, u: Any, width: Any, bits: Any) -> None:
    """The stages among neighbours, a product with u, the stages among neighbours once more."""
    one = np.int32(1)
    if _middle_bits(bits) == 3:
        for k in range(np.int32(width >> 3)):
            at = np.int32(8 * k)
            low = _times(_transformed8(_load8(v, at, one)), _load8(u, at, one))
            _store8(v, at, one, _transformed8(low))
        return
    for k in range(np.int32(width >> 4)):
        at, beside = np.int32(16 * k), np.int32(16 * k + 8)
        a, b = _transformed8(_load8(v, at, one)), _transformed8(_load8(v, beside, one))
        low, high = _times(_plus(a, b), _load8(u, at, one)), _times(_minus(a, b), _load8(u, beside, one))
        a, b = _transformed8(low), _transformed8(high)
        _store8(v, at, one, _plus(a, b))
        _store8(v, beside, one, _minus(a, b))


@device
def _transform(u: Any, width: Any, bits: Any) -> None:
    """u <- H u."""
    if bits < 6:
        _low_stages(u, width, bits)
        return
    _high_stages(u, np.int32(0), u, width, bits)
    one = np.int32(1)
    for k in range(np.int32(width >> 3)):
        at = np.int32(8 * k)
        _store8(u, at, one, _transformed8(_load8(u, at, one)))
    if _middle_bits(bits) == 4:
        _pass2(u, width, np.int32(8))


@device
def _modulate(w: Any, base: Any, u: Any, v: Any, width: Any, bits: Any, count: Any) -> Any:
    """V <- H (u . H w[base : base + width]), all stages or all but the last, which `count` outputs sum for themselves.

    Returns log2 of how far apart the floats are that an output sums: those at all such distances.
    """
    if bits < 6:
        for k in range(width):
            v[np.uint32(k)] = weight(w, np.uint32(base + k))
        _low_stages(v, width, bits)
        for k in range(width):
            v[np.uint32(k)] *= u[np.uint32(k)]
        _low_stages(v, width, bits)
        return bits
    _high_stages(w, base, v, width, bits)
    _middle(v, u, width, bits)
    done = _middle_bits(bits)
    if (bits - done) % 3 != 0:
        _pass2(v, width, np.int32(1 << done))
        done += 1
    # A pass costs about five operations a float; it saves each output two for seven in eight floats of its sum.
    while bits > done and 7 * count > 20 << done:
        _pass8(v, width, np.int32(1 << done))
        done += 3
    return done


@inlined
def _sign(bit: Any) -> Any:
    return np.float32(-1.0) if bit & 1 else np.float32(1.0)


@inlined
def _signed_sum8(v: Any, at: Any, step: Any, s: Any, t: Any, r: Any) -> Any:
    a, b, c, d, e, f, g, h = _load8(v, at, step)
    return a + s * b + t * (c + s * d) + r * (e + s * f + t * (g + s * h))


@device
def _output(v: Any, place: Any, width: Any, done: Any) -> Any:
    """Entry `place` of V, of which the stages at distances 2^done and above are still to be done: none, or 8^n."""
    at, beta, step = np.int32(place & ((1 << done) - 1)), np.int32(place >> done), np.int32(1 << done)
    if step == width:
        return v[np.uint32(at)]
    s, t, r = _sign(beta), _sign(beta >> 1), _sign(beta >> 2)
    total = _signed_sum8(v, at, step, s, t, r)
    for k in range(np.int32(1), np.int32(width >> (done + 3))):
        part = _signed_sum8(v, np.int32(at + (k << (done + 3))), step, s, t, r)
        total += _sign(parity(np.int32(8 * k & beta))) * part
    return total


@inlined
def signed(value: Any, signs: Any, i: Any) -> Any:
    """value, negated where bit i of `signs` is set."""
    return -value if np.uint32(signs[np.uint32(i >> 4)]) >> np.uint32(i & 15) & 1 else value


@inlined
def magnitude(value: Any) -> Any:
    """The bits of |value|, which order as the numbers do, Inf and NaN above all."""
    return np.uint32(np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF))


@device
def _fold(x: Any, scale: Any, inputs: Any, width: Any, signs: Any, u: Any) -> Any:
    """u[k] = sum of s(i) scale x[i] over i = k (mod width), over width; returns whether the row must go directly.

    inputs and width: uint32, in which their sum has room.
    """
    factor, largest = np.float32(1.0) / np.float32(width), np.uint32(0)
    for k in range(np.int32(width)):
        i, total = np.uint32(k), np.float32(0.0)
        while i < inputs:
            total += signed(x[i] * scale, signs, i)
            i = np.uint32(i + width)
        u[np.uint32(k)] = total * factor
        largest = max(largest, magnitude(total))
    return out_of_range(largest)


@device
def direct_row(args: Any, tile: Any, x: Any, scale: Any, w: Any) -> None:
    """Row `tile` without the transform."""
    width, inputs, outputs = args[WIDTH], args[INPUTS], args[OUTPUTS]
    groups, start = args[BUCKETS] // width, row_start(args, tile)
    row_signs, col_signs = uint16_array(args[ROW_SIGNS], NO_LIMIT), uint16_array(args[COL_SIGNS], NO_LIMIT)
    places = int32_array(args[PLACES], NO_LIMIT)
    for j in range(outputs):
        base, perm, total = j % groups * width, np.int64(places[j // groups]), np.float32(0.0)
        for i in range(inputs):
            if x[i] != np.float32(0.0):
                total += signed(x[i] * scale, row_signs, np.uint32(i)) * weight(w, base + ((i & (width - 1)) ^ perm))
        finish(args, start, tile, j, signed(total, col_signs, np.uint32(j)))


@device
def _small(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    width, inputs, outputs = args[WIDTH], args[INPUTS], args[OUTPUTS]
    u, v = float32_array(scratch, width), float32_array(scratch + 4 * width, width)
    if args[PATCHES] == 0:
        x, scale = float32_array(args[X] + 4 * tile * args[X_ROW_STRIDE], inputs), float_at(args, X_SCALE)
    else:
        x, scale = float32_array(scratch + 8 * width, inputs), np.float32(1.0)
        read_rows(args, tile, 1, 0, inputs, x)
    if _fold(x, scale, np.uint32(inputs), np.uint32(width), uint16_array(args[ROW_SIGNS], NO_LIMIT), u):
        direct_row(args, tile, x, scale, w)
        return
    bits, groups, narrow = log2_of(width), args[BUCKETS] // width, np.int32(width)
    _transform(u, narrow, bits)
    places, signs = int32_array(args[PLACES], NO_LIMIT), uint16_array(args[COL_SIGNS], NO_LIMIT)
    start, epilogue = row_start(args, tile), epilogue_of(args)
    for g in range(min(groups, outputs)):
        count = (outputs - g + groups - 1) // groups
        done = _modulate(w, np.int32(g * width), u, v, narrow, bits, count)
        j = np.uint64(g)
        for t in range(np.int32(count)):
            value = signed(_output(v, places[np.uint32(t)], narrow, done), signs, np.uint32(j))
            finish_by(args, epilogue, start, tile, j, value)
            j = np.uint64(j + np.uint64(groups))


@entry(*FIELDS)
def dyadic_small_f32(args: Any, tile: Any, scratch: Any) -> None:
    """Row `tile`, all outputs."""
    _small(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_small_f16(args: Any, tile: Any, scratch: Any) -> None:
    _small(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_small_i8(args: Any, tile: Any, scratch: Any) -> None:
    _small(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
