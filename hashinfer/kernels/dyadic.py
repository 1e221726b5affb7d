"""The dyadic scheme for single rows, through the Walsh-Hadamard transform; directly by XOR where that must not be used.

A row's inputs are folded, u[k] = sum of s(i) x[i] over i = k (mod width), and H u is taken once. For each chunk of
groups, V = spectrum . H u, V <- H V, y[t G + g] = r(j) V[perm(t)][g]. Only the outputs that exist are computed: the
last stages of H are signed sums of `tail` vectors, one for each t.

Spectrum: H w_g / width for each group g, float32, in chunks of 16, 8, 4, 2 or 1 groups. A chunk is [width][lanes],
zeros behind the groups that exist; seen as vectors of sixteen floats h = 0, 1, ..., it is stored in the order in which
the first pass of radix RADIX reads it, h = 0, n / RADIX, 2 n / RADIX, ..., 1, ... (as it is where n < RADIX).

Norm-wise error: |y - exact| <= 4 (log2(width) + 2) eps ||u||_2 ||w_g||_2 plus the fold's own,
(inputs / width) eps || |x| folded ||_2 ||w_g||_2.

A row whose folded inputs are not finite, or whose largest is outside [SMALLEST, LARGEST], or that has at most
`direct_below` non-zero inputs, is computed directly: y[j] = sum of x[i] W[i, j] over the non-zero inputs.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashinfer.kernels.arguments import INPUTS, NO_LIMIT, OUTPUTS, PRODUCT, ROWS, finish_sums, row_at
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.hadamard import RADIX_BITS, hadamard, log2_of, parity, passes, signed_sum
from hashinfer.kernels.hashing import permute, sign_at, sign_of, weight
from hashinfer.kernels.isa import MOST_LANES, RADIX
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.rows import whole_row
from hashinfer.kernels.vectors import (
    LANES,
    add16,
    flip16,
    float32_array,
    fma16,
    int8_array,
    int32_array,
    intp,
    intp_array,
    largest16,
    load16,
    modulated_lanes1,
    modulated_lanes2,
    modulated_lanes4,
    modulated_lanes8,
    modulated_lanes16,
    mul16,
    nonzero16,
    signed_sum16,
    splat16,
    store16,
    store_lanes16,
    uint16_array,
)

SMALLEST, LARGEST = np.float32(2.0**-40), np.float32(2.0**40)
SMALLEST_BITS, LARGEST_BITS = SMALLEST.view(np.uint32), LARGEST.view(np.uint32)

FIELDS = (
    *PRODUCT,
    "w",
    "buckets",
    "seed",
    "width",
    "half",
    "spectrum",
    "chunks",
    "chunk_count",
    "places",
    "row_signs",
    "col_signs",
    "folded",
    "direct",
    "raw",
    "direct_below",
    "tail",
)
(
    W,
    BUCKETS,
    SEED,
    WIDTH,
    HALF,
    SPECTRUM,
    CHUNKS,
    CHUNK_COUNT,
    PLACES,
    ROW_SIGNS,
    COL_SIGNS,
    FOLDED,
    DIRECT,
    RAW,
    DIRECT_BELOW,
    TAIL,
) = range(len(PRODUCT), len(FIELDS))
"""chunks: intp [chunk_count, 4], see chunk_table; places: int32 [T], perm(t) of the T = ceil(outputs / groups) places;
row_signs, col_signs: uint16, bit i % 16 of word i // 16 set where s(i), r(j) is -1. Between the kernels of a product in
three steps: folded: H u, float32 [rows, width + 16]; direct: intp [rows], 1 where a row goes directly; raw: float32
[rows, raw_floats], y / r(j). direct_below: at most this many non-zero inputs go directly; tail: as a chunk's,
where pixels are the lanes. Every weight is finite: such matrices alone come here."""

CHUNK_FIELDS = 4
PART = 16
"""Vectors of each block that are made at once where outputs sum up whole blocks: they stay in a first-level cache."""


# Rough times in nanoseconds: what layouts are told apart by. A vector of the first pass, by the lanes of its chunk.
_NS_FIRST = {16: 1.2, 8: 1.55, 4: 2.0, 2: 2.3, 1: 2.4}
_NS_PASSES, _NS_PASS, _NS_STAGE, _NS_OUTPUT, _NS_SUM = 60.0, 0.5, 0.13, 3.0, 0.4


def transform_ns(vectors: int, lanes: int, outputs: int, tail: int) -> float:
    """Of the transform of one chunk, its last stages pruned to `outputs` sums of `tail` vectors."""
    if vectors < RADIX:
        return 4.0 * vectors * lanes + 10.0 * outputs
    each, left = _NS_FIRST[lanes], vectors // RADIX // tail
    while left > 1:
        radix = min(RADIX, left)
        each += _NS_PASS + _NS_STAGE * (radix.bit_length() - 1)
        left //= radix
    more = _NS_PASSES if vectors // RADIX > tail else 0.0
    return more + vectors * each + outputs * (_NS_OUTPUT + _NS_SUM * tail)


@cache
def best_tail(vectors: int, lanes: int, outputs: int) -> int:
    """How many vectors the last, pruned stages of a transform of `vectors` should sum for each of `outputs` outputs.

    At most 2^12: sums of sixteen are added one after another, and the error bound is that of pairs.
    """
    tails = [1 << k for k in range(max(1, min(vectors // RADIX, 2**12).bit_length()))]
    return min(tails, key=lambda tail: transform_ns(vectors, lanes, outputs, tail))


@cache
def _cut(groups: int, width: int, outputs: int) -> tuple[float, tuple[int, ...]]:
    """The lanes of the chunks that at most sixteen groups are best cut into, and the time that they take."""
    if groups <= 0:
        return 0.0, ()
    found = []
    for lanes in (n for n in (16, 8, 4, 2, 1) if n <= MOST_LANES):
        vectors = width * lanes // 16
        after, others = _cut(groups - lanes, width, outputs) if lanes < 2 * groups else (np.inf, ())
        own = transform_ns(vectors, lanes, outputs, best_tail(vectors, lanes, outputs))
        found.append((after + own, (lanes, *others)))
    return min(found)


def chunk_table(groups: int, width: int, outputs: int) -> NDArray[np.int64]:
    """int64 [chunks, 4]: first group, lanes, first float in the spectrum, tail, for each chunk."""
    places = -(-outputs // groups)
    whole = (groups - 1) // MOST_LANES
    lanes = (MOST_LANES,) * whole + _cut(groups - MOST_LANES * whole, width, places)[1]
    first = np.cumsum((0, *lanes[:-1]))
    tails = [best_tail(width * n // 16, n, places) for n in lanes]
    return np.ascontiguousarray(np.stack([first, lanes, first * width, tails], 1), np.int64)


def raw_floats(outputs: int, groups: int) -> int:
    """Floats of a row of unsigned outputs: whole rows t of groups, and room for a vector that begins in the last."""
    return -(-outputs // groups) * groups + LANES


def vector_floats(width: int) -> int:
    """Floats of V: RADIX blocks, a vector apart so that they do not share the sets of a cache; or parts, and sums."""
    return MOST_LANES * width + LANES * RADIX


def row_scratch_bytes(width: int, inputs: int, outputs: int, groups: int) -> int:
    """Scratch of dyadic_row: u, V, outputs, and the row's inputs where they are gathered from patches."""
    return 4 * (width + LANES + vector_floats(width) + raw_floats(outputs, groups) + inputs)


def inverse_scratch_bytes(width: int) -> int:
    """Scratch of dyadic_inverse: V."""
    return 4 * vector_floats(width)


@inlined
def vector_count(width: Any) -> Any:
    """vector_floats, for kernels."""
    return MOST_LANES * width + LANES * RADIX


@inlined
def raw_count(args: Any) -> Any:
    """raw_floats, for kernels."""
    groups = args[BUCKETS] // args[WIDTH]
    return (args[OUTPUTS] + groups - 1) // groups * groups + LANES


@inlined
def stored_vector(h: Any, vectors: Any) -> Any:
    """Where the h-th of a chunk's vectors lies in the spectrum."""
    if vectors < RADIX:
        return h
    block = vectors // RADIX
    return h % block * RADIX + h // block


@inlined
def chunk_at(table: Any, chunk: Any) -> Any:
    """(first group, lanes, first float in the spectrum, tail) of a chunk; table: address of a chunk_table."""
    fields, row = intp_array(table, NO_LIMIT), chunk * CHUNK_FIELDS
    return fields[row], fields[row + 1], fields[row + 2], fields[row + 3]


SPECTRUM_FIELDS = ("w", "buckets", "width", "chunks", "chunk_count", "spectrum", "floats")


@device
def _spectrum(args: Any, scratch: Any, w: Any) -> None:
    width, spectrum, v = args[2], float32_array(args[5], args[6]), float32_array(scratch, args[2] * MOST_LANES)
    groups = w.size // width
    factor = np.float32(1.0) / np.float32(width)
    for chunk in range(args[4]):
        g0, lanes, at, _ = chunk_at(args[3], chunk)
        for lane in range(lanes):
            g = g0 + lane
            for k in range(width):
                v[k * lanes + lane] = weight(w, g * width + k) * factor if g < groups else np.float32(0.0)
        hadamard(v, width, lanes)
        vectors = width * lanes // 16
        for h in range(vectors):
            store16(spectrum, at + 16 * stored_vector(h, vectors), load16(v, 16 * h))
        for k in range(16 * vectors, width * lanes):
            spectrum[at + k] = v[k]


@entry(*SPECTRUM_FIELDS)
def dyadic_spectrum_f32(args: Any, tile: Any, scratch: Any) -> None:
    """Write H w_g / width for each group into the spectrum, of `floats` floats. One tile. Scratch: float32 [width,
    MOST_LANES]."""
    _spectrum(args, scratch, float32_array(args[0], args[1]))


@entry(*SPECTRUM_FIELDS)
def dyadic_spectrum_f16(args: Any, tile: Any, scratch: Any) -> None:
    _spectrum(args, scratch, uint16_array(args[0], args[1]))


@entry(*SPECTRUM_FIELDS)
def dyadic_spectrum_i8(args: Any, tile: Any, scratch: Any) -> None:
    _spectrum(args, scratch, int8_array(args[0], args[1]))


@device
def out_of_range(largest: Any) -> Any:
    """Whether a largest magnitude, as its bits, is not finite or outside the safe range."""
    return largest != np.uint32(0) and not SMALLEST_BITS <= largest <= LARGEST_BITS


@inlined
def magnitude(value: Any) -> Any:
    """The bits of |value|, which order as the numbers do, Inf and NaN above all."""
    return np.uint32(np.float32(value).view(np.uint32) & np.uint32(0x7FFFFFFF))


@device
def must_go_direct(u: Any, width: Any) -> Any:
    """Whether u[:width] is not finite or has a largest magnitude outside the safe range."""
    largest = np.uint32(0)
    for k in range(width):
        largest = max(largest, magnitude(u[k]))
    return out_of_range(largest)


@device
def fold_row(x: Any, scale: Any, inputs: Any, width: Any, signs: Any, u: Any, spare: Any) -> Any:
    """u[k] = sum of s(i) scale x[i] over i = k (mod width).

    Returns the number of non-zero inputs and whether u must go directly. spare: float32 [16] of scratch.
    """
    nonzero = 0
    if width < 16:
        clear(u[:width])
        for i in range(inputs):
            u[i & (width - 1)] += sign_at(signs, i) * (x[i] * scale)
            nonzero += 1 if x[i] != np.float32(0.0) else 0
        return nonzero, must_go_direct(u, width)
    scales, whole = splat16(scale), inputs & ~15
    largest = splat16(np.float32(0.0))
    for k in range(16):
        spare[k] = x[whole + k] if whole + k < inputs else np.float32(0.0)
    for k in range(0, width, 16):
        total, i = splat16(np.float32(0.0)), k
        # A range whose step is not known divides.
        while i < whole:
            value = mul16(load16(x, i), scales)
            nonzero += nonzero16(value)
            total = add16(total, flip16(value, signs[i >> 4]))
            i += width
        if (whole & (width - 1)) == k and whole < inputs:
            value = mul16(load16(spare, 0), scales)
            nonzero += nonzero16(value)
            total = add16(total, flip16(value, signs[whole >> 4]))
        largest = largest16(largest, total)
        store16(u, k, total)
    store16(spare, 0, largest)
    return nonzero, must_go_direct(spare, 16)


@device
def direct_row(args: Any, x: Any, scale: Any, w: Any, first: Any, last: Any, v: Any, raw: Any) -> None:
    """raw[t G + g] for the groups from `first` to before `last`, without the transform.

    v: float32 [vector_floats(width)] of scratch, for the list of non-zero inputs where it is long enough.
    """
    width, half, seed, inputs = args[WIDTH], args[HALF], np.uint32(args[SEED]), args[INPUTS]
    groups, room = args[BUCKETS] // width, width * MOST_LANES // 2
    signs, nonzero = uint16_array(args[ROW_SIGNS], NO_LIMIT), 0
    for i in range(inputs):
        nonzero += 1 if x[i] != np.float32(0.0) else 0
    listed = nonzero <= room
    values, indices = v[:room], v[room : 2 * room].view(np.int32)
    if listed:
        count = 0
        for i in range(inputs):
            if x[i] != np.float32(0.0):
                indices[count] = np.int32(i)
                values[count] = sign_at(signs, i) * (x[i] * scale)
                count += 1
    low = np.int32(width - 1)
    for t in range((args[OUTPUTS] + groups - 1) // groups):
        perm = np.int32(permute(t, width, half, seed))
        for g in range(first, last):
            total, base = np.float32(0.0), g * width
            if listed:
                for q in range(nonzero):
                    total += values[q] * weight(w, base + intp((indices[q] & low) ^ perm))
            else:
                for i in range(inputs):
                    if x[i] != np.float32(0.0):
                        value = sign_at(signs, i) * (x[i] * scale)
                        total += value * weight(w, base + intp((np.int32(i) & low) ^ perm))
            raw[t * groups + g] = total


@device
def _first_pass(spectrum: Any, at: Any, u: Any, v: Any, lanes: Any, block: Any, first: Any, part: Any) -> None:
    """The stages across RADIX blocks of spectrum . u: `part` vectors of each from `first` on, a vector apart."""
    step, last = (part + 1) * 16, first + part
    if lanes == 16:
        for q in range(first, last):
            modulated_lanes16(spectrum, at + q * RADIX * 16, u, q, block, v, (q - first) * 16, step)
    elif lanes == 8:
        for q in range(first, last):
            modulated_lanes8(spectrum, at + q * RADIX * 16, u, q, block, v, (q - first) * 16, step)
    elif lanes == 4:
        for q in range(first, last):
            modulated_lanes4(spectrum, at + q * RADIX * 16, u, q, block, v, (q - first) * 16, step)
    elif lanes == 2:
        for q in range(first, last):
            modulated_lanes2(spectrum, at + q * RADIX * 16, u, q, block, v, (q - first) * 16, step)
    else:
        for q in range(first, last):
            modulated_lanes1(spectrum, at + q * RADIX * 16, u, q, block, v, (q - first) * 16, step)


@device
def inverse_chunk(args: Any, chunk: Any, u: Any, v: Any, raw: Any) -> None:
    """raw[t G + g] for the groups of one chunk from the transformed inputs u [width + 16]."""
    width = args[WIDTH]
    groups = args[BUCKETS] // width
    g0, lanes, at, tail = chunk_at(args[CHUNKS], chunk)
    spectrum, there = float32_array(args[SPECTRUM], NO_LIMIT), min(lanes, groups - g0)
    count = (args[OUTPUTS] + groups - 1) // groups
    places, vectors = int32_array(args[PLACES], count), width * lanes // 16
    if vectors < RADIX:
        for k in range(width):
            for lane in range(lanes):
                v[k * lanes + lane] = spectrum[at + k * lanes + lane] * u[k]
        hadamard(v, width, lanes)
        for t in range(count):
            for lane in range(there):
                raw[t * groups + g0 + lane] = v[places[t] * lanes + lane]
        return
    shift = log2_of(vectors) - RADIX_BITS
    block, sums = 1 << shift, 16 * RADIX * (PART + 1)
    parted = tail == block > PART and sums + 16 * count <= v.size
    part = PART if parted else block
    for first in range(0, block, part):
        _first_pass(spectrum, at, u, v, lanes, block, first, part)
        if parted:
            for t in range(count):
                h = intp(places[t]) * lanes >> 4
                value = signed_sum16(v, 16 * (h >> shift) * (PART + 1), h & (PART - 1))
                if first > 0:
                    value = fma16(splat16(sign_of(parity(h & first))), value, load16(v, sums + 16 * t))
                store16(v, sums + 16 * t, value)
    if tail < block:
        for r in range(RADIX):
            passes(v, r * (block + 1), shift, log2_of(tail))
    # What a whole vector writes behind the groups that exist is the next row's, which comes after it.
    whole = lanes == 16 and (there == 16 or args[CHUNK_COUNT] == 1)
    for t in range(count):
        place = intp(places[t]) * lanes
        h = place >> 4
        if parted:
            value = load16(v, sums + 16 * t)
        else:
            value = signed_sum(v, 16 * ((h & -tail) + (h >> shift)), tail, h & (tail - 1))
        if whole:
            store16(raw, t * groups + g0, value)
        else:
            store_lanes16(raw, t * groups + g0, value, place & 15, there)


@device
def finish_row(args: Any, r: Any, raw: Any) -> None:
    """y of row r from its outputs without signs, which are overwritten."""
    finish_sums(args, r, 0, args[OUTPUTS], raw, 0, uint16_array(args[COL_SIGNS], NO_LIMIT))


@device
def _folded(args: Any, x: Any, scale: Any, u: Any, spare: Any) -> Any:
    """Fold a row into u and transform it; returns whether it goes directly instead."""
    width, signs = args[WIDTH], uint16_array(args[ROW_SIGNS], NO_LIMIT)
    nonzero, direct = fold_row(x, scale, args[INPUTS], width, signs, u, spare)
    if direct or nonzero <= args[DIRECT_BELOW]:
        return True
    hadamard(u, width, 1)
    return False


@device
def _row(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    width = args[WIDTH]
    groups, floats = args[BUCKETS] // width, vector_count(width)
    u, v = float32_array(scratch, width + 16), float32_array(scratch + 4 * (width + 16), floats)
    raw = float32_array(scratch + 4 * (width + 16 + floats), raw_count(args))
    x, scale = whole_row(args, tile, scratch + 4 * (width + 16 + floats + raw_count(args)))
    if _folded(args, x, scale, u, v):
        direct_row(args, x, scale, w, 0, groups, v, raw)
    else:
        for chunk in range(args[CHUNK_COUNT]):
            inverse_chunk(args, chunk, u, v, raw)
    finish_row(args, tile, raw)


@entry(*FIELDS)
def dyadic_row_f32(args: Any, tile: Any, scratch: Any) -> None:
    """Row `tile`, all outputs."""
    _row(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_row_f16(args: Any, tile: Any, scratch: Any) -> None:
    _row(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_row_i8(args: Any, tile: Any, scratch: Any) -> None:
    _row(args, tile, scratch, int8_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_fold(args: Any, tile: Any, scratch: Any) -> None:
    """H u of row `tile`, and whether the row goes directly. dyadic_inverse and dyadic_finish come behind it."""
    x, scale = row_at(args, tile)
    room = args[WIDTH] + 16
    u = float32_array(args[FOLDED] + 4 * tile * room, room)
    spare = float32_array(scratch, 16)
    direct = intp_array(args[DIRECT], args[ROWS])
    direct[tile] = 1 if _folded(args, x, scale, u, spare) else 0


@device
def _inverse(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    width, r, chunk = args[WIDTH], tile // args[CHUNK_COUNT], tile % args[CHUNK_COUNT]
    v = float32_array(scratch, vector_count(width))
    raw = float32_array(args[RAW] + 4 * r * raw_count(args), raw_count(args))
    if intp_array(args[DIRECT], args[ROWS])[r] == 0:
        u = float32_array(args[FOLDED] + 4 * r * (width + 16), width + 16)
        inverse_chunk(args, chunk, u, v, raw)
        return
    first, lanes, _, _ = chunk_at(args[CHUNKS], chunk)
    last = min(args[BUCKETS] // width, first + lanes)
    x, scale = row_at(args, r)
    direct_row(args, x, scale, w, first, last, v, raw)


@entry(*FIELDS)
def dyadic_inverse_f32(args: Any, tile: Any, scratch: Any) -> None:
    """One chunk of one row: tile = row * chunk_count + chunk."""
    _inverse(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_inverse_f16(args: Any, tile: Any, scratch: Any) -> None:
    _inverse(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_inverse_i8(args: Any, tile: Any, scratch: Any) -> None:
    _inverse(args, tile, scratch, int8_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_finish(args: Any, tile: Any, scratch: Any) -> None:
    """Signs, bias and activation of row `tile`."""
    finish_row(args, tile, float32_array(args[RAW] + 4 * tile * raw_count(args), raw_count(args)))
