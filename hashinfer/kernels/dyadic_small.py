"""The dyadic scheme for single rows where memory is dear and there are no vectors: ISA `small`.

As hashinfer.kernels.dyadic, with its error bound, but a group at a time and in single floats: V <- H w_g, V <- V . H u
/ width, V <- H V, y[t G + g] = r(j) V[perm(t)]. There is one large constant: w, of which H w_g is taken on the way, or
H w_g in w's place; outputs go where they belong as they come, each a signed sum over the last stages of H.

Where an index is unsigned, nothing asks whether it is negative.

A row whose folded inputs are not finite, or whose largest is outside [SMALLEST, LARGEST], is computed directly. Every
weight is finite: such matrices alone come here.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import INPUTS, NO_LIMIT, OUTPUTS, PRODUCT, epilogue_of, finish, finish_by, row_start
from hashinfer.kernels.dyadic import magnitude, out_of_range
from hashinfer.kernels.hadamard import log2_of, parity
from hashinfer.kernels.hashing import weight
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.rows import whole_row
from hashinfer.kernels.vectors import columns8, float32_array, int8_array, int32_array, intp, uint16_array, uintp

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
        weight(v, uintp(at)),
        weight(v, uintp(at + step)),
        weight(v, uintp(at + 2 * step)),
        weight(v, uintp(at + 3 * step)),
        weight(v, uintp(p)),
        weight(v, uintp(p + step)),
        weight(v, uintp(p + 2 * step)),
        weight(v, uintp(p + 3 * step)),
    )


@inlined
def _store8(v: Any, at: Any, step: Any, values: Any) -> None:
    p = at + 4 * step
    v[uintp(at)], v[uintp(at + step)] = values[0], values[1]
    v[uintp(at + 2 * step)], v[uintp(at + 3 * step)] = values[2], values[3]
    v[uintp(p)], v[uintp(p + step)] = values[4], values[5]
    v[uintp(p + 2 * step)], v[uintp(p + 3 * step)] = values[6], values[7]


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
    for k in range(step >> 2):
        at = 4 * k
        columns8(x, base + at, v, at, step)


@device
def _pass8(v: Any, width: Any, step: Any) -> None:
    """The three stages at distances step, 2 step and 4 step. step: a multiple of 4."""
    start = 0
    while start < width:
        for k in range(step >> 2):
            at = start + 4 * k
            columns8(v, at, v, at, step)
        start += 8 * step


@device
def _pass2(v: Any, width: Any, step: Any) -> None:
    """The stage at distance step."""
    start = 0
    while start < width:
        for k in range(step):
            first, second = uintp(start + k), uintp(start + k + step)
            a, b = v[first], v[second]
            v[first], v[second] = a + b, a - b
        start += 2 * step


@device
def _low_stages(v: Any, width: Any, bits: Any) -> None:
    """The stages at distances 1, 2, ... 2^(bits - 1)."""
    for b in range(bits):
        _pass2(v, width, 1 << b)


@inlined
def _middle_bits(bits: Any) -> Any:
    """How many of 6 stages or more are done among neighbours, in one pass; threes and at most one are left over."""
    return 3 if bits % 3 == 0 else 4


@device
def _high_stages(x: Any, base: Any, v: Any, width: Any, bits: Any) -> None:
    """v <- the stages of x[base : base + width] that are not among neighbours, of bits >= 6."""
    left = bits - 3
    _first8(x, base, v, 1 << left)
    while left - 3 >= _middle_bits(bits):
        left -= 3
        _pass8(v, width, 1 << left)
    if left > _middle_bits(bits):
        _pass2(v, width, 1 << (left - 1))


@inlined
def _middle(x: Any, base: Any, v: Any, u: Any, width: Any, bits: Any, whole: Any) -> None:
    """v <- the stages among neighbours of x[base : base + width] times u; `whole`: once before the product as well."""
    if _middle_bits(bits) == 3:
        for k in range(width >> 3):
            at = 8 * k
            a = _load8(x, base + at, 1)
            if whole:
                a = _transformed8(a)
            _store8(v, at, 1, _transformed8(_times(a, _load8(u, at, 1))))
        return
    for k in range(width >> 4):
        at, beside = 16 * k, 16 * k + 8
        a, b = _load8(x, base + at, 1), _load8(x, base + beside, 1)
        if whole:
            a, b = _transformed8(a), _transformed8(b)
            a, b = _plus(a, b), _minus(a, b)
        a, b = _transformed8(_times(a, _load8(u, at, 1))), _transformed8(_times(b, _load8(u, beside, 1)))
        _store8(v, at, 1, _plus(a, b))
        _store8(v, beside, 1, _minus(a, b))


@device
def _transform(u: Any, width: Any, bits: Any) -> None:
    """u <- H u."""
    if bits < 6:
        _low_stages(u, width, bits)
        return
    _high_stages(u, 0, u, width, bits)
    for k in range(width >> 3):
        at = 8 * k
        _store8(u, at, 1, _transformed8(_load8(u, at, 1)))
    if _middle_bits(bits) == 4:
        _pass2(u, width, 8)


@inlined
def _modulate(w: Any, base: Any, u: Any, v: Any, width: Any, bits: Any, count: Any, spectral: Any) -> Any:
    """V <- H (u . H w_g), all stages or all but the last, which `count` outputs sum for themselves.

    w_g is w[base : base + width], or H w_g is where `spectral`. Returns log2 of how far apart the floats are that an
    output sums: those at all such distances.
    """
    if bits < 6:
        for k in range(width):
            v[k] = weight(w, base + k)
        if not spectral:
            _low_stages(v, width, bits)
        for k in range(width):
            v[k] *= u[k]
        _low_stages(v, width, bits)
        return bits
    if spectral:
        _middle(w, base, v, u, width, bits, False)
    else:
        _high_stages(w, base, v, width, bits)
        _middle(v, 0, v, u, width, bits, True)
    done = _middle_bits(bits)
    if (bits - done) % 3 != 0:
        _pass2(v, width, 1 << done)
        done += 1
    # A pass costs about five operations a float; it saves each output two for seven in eight floats of its sum.
    while bits > done and 7 * count > 20 << done:
        _pass8(v, width, 1 << done)
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
    at, beta, step = place & ((1 << done) - 1), place >> done, 1 << done
    if step == width:
        return v[at]
    s, t, r = _sign(beta), _sign(beta >> 1), _sign(beta >> 2)
    total = _signed_sum8(v, at, step, s, t, r)
    for k in range(1, width >> (done + 3)):
        part = _signed_sum8(v, at + (k << (done + 3)), step, s, t, r)
        total += _sign(parity(8 * k & beta)) * part
    return total


@inlined
def signed(value: Any, signs: Any, i: Any) -> Any:
    """value, negated where bit i of `signs` is set."""
    return -value if signs[uintp(i >> 4)] >> (i & 15) & 1 else value


@device
def _fold(x: Any, scale: Any, inputs: Any, width: Any, signs: Any, u: Any) -> Any:
    """u[k] = sum of s(i) scale x[i] over i = k (mod width), over width; returns whether the row must go directly."""
    factor, largest = np.float32(1.0) / np.float32(width), np.uint32(0)
    for k in range(width):
        i, total = uintp(k), np.float32(0.0)
        while i < uintp(inputs):
            total += signed(x[i] * scale, signs, i)
            i = uintp(i + uintp(width))
        u[k] = total * factor
        largest = max(largest, magnitude(total))
    return out_of_range(largest)


@device
def direct_group(args: Any, tile: Any, x: Any, scale: Any, w: Any, base: Any, g: Any) -> None:
    """The outputs of row `tile` that are of group g, whose weights begin at w[base], without the transform."""
    width, inputs, outputs, groups = args[WIDTH], args[INPUTS], args[OUTPUTS], args[BUCKETS] // args[WIDTH]
    row_signs, col_signs = uint16_array(args[ROW_SIGNS], NO_LIMIT), uint16_array(args[COL_SIGNS], NO_LIMIT)
    places, start = int32_array(args[PLACES], NO_LIMIT), row_start(args, tile)
    for j in range(g, outputs, groups):
        perm, total = intp(places[j // groups]), np.float32(0.0)
        for i in range(inputs):
            if x[i] != np.float32(0.0):
                total += signed(x[i] * scale, row_signs, i) * weight(w, base + ((i & (width - 1)) ^ perm))
        finish(args, start, tile, j, signed(total, col_signs, j))


@inlined
def _small(args: Any, tile: Any, scratch: Any, w: Any, spectral: Any) -> None:
    width, inputs, outputs = args[WIDTH], args[INPUTS], args[OUTPUTS]
    u, v = float32_array(scratch, width), float32_array(scratch + 4 * width, width)
    x, scale = whole_row(args, tile, scratch + 8 * width)
    direct = _fold(x, scale, inputs, width, uint16_array(args[ROW_SIGNS], NO_LIMIT), u)
    bits, groups = log2_of(width), args[BUCKETS] // width
    if not direct:
        _transform(u, width, bits)
    places, signs = int32_array(args[PLACES], NO_LIMIT), uint16_array(args[COL_SIGNS], NO_LIMIT)
    start, epilogue = row_start(args, tile), epilogue_of(args)
    for g in range(min(groups, outputs)):
        if direct and spectral:
            for k in range(width):
                v[k] = weight(w, g * width + k) / np.float32(width)
            _transform(v, width, bits)
            direct_group(args, tile, x, scale, v, 0, g)
        elif direct:
            direct_group(args, tile, x, scale, w, g * width, g)
        else:
            count = (outputs - g + groups - 1) // groups
            done = _modulate(w, g * width, u, v, width, bits, count, spectral)
            for t in range(count):
                j = g + t * groups
                finish_by(args, epilogue, start, tile, j, signed(_output(v, places[t], width, done), signs, j))


@entry(*FIELDS)
def dyadic_small_spectrum(args: Any, tile: Any, scratch: Any) -> None:
    """Row `tile`, all outputs. w: H w_g of all groups, float32."""
    _small(args, tile, scratch, float32_array(args[W], args[BUCKETS]), True)


@entry(*FIELDS)
def dyadic_small_f32(args: Any, tile: Any, scratch: Any) -> None:
    """The same of the weight vector itself, as those below."""
    _small(args, tile, scratch, float32_array(args[W], args[BUCKETS]), False)


@entry(*FIELDS)
def dyadic_small_f16(args: Any, tile: Any, scratch: Any) -> None:
    _small(args, tile, scratch, uint16_array(args[W], args[BUCKETS]), False)


@entry(*FIELDS)
def dyadic_small_i8(args: Any, tile: Any, scratch: Any) -> None:
    _small(args, tile, scratch, int8_array(args[W], args[BUCKETS]), False)
