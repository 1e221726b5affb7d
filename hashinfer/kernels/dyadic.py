"""The dyadic scheme through the Walsh-Hadamard transform, and directly by XOR where the transform must not be used.

Spectrum: H w_g / width for each group g, float32, laid out in chunks of at most 16 groups: chunk c holds groups
16 c ... 16 c + 15 as [width][lanes], lanes the number of its groups rounded up to a power of two (zeros behind them).

A row's inputs are folded, u[k] = sum of s(i) x[i] over i = k (mod width), and H u is taken once. For each chunk,
V = spectrum . H u, V <- H V, y[t G + g] = r(j) V[perm(t)][g].

Norm-wise error: |y - exact| <= 4 (log2(width) + 2) eps ||u||_2 ||w_g||_2 plus the fold's own,
(inputs / width) eps || |x| folded ||_2 ||w_g||_2.

The transpose x @ W^T scatters x into v_g, sums spectrum . H v_g over the groups and transforms once more:
|z - exact| <= (4 (log2(width) + 2) + groups + ceil(inputs / K)) eps sum over g of ||v_g||_2 ||w_g||_2.

A row whose folded inputs are not finite, or whose largest is outside [SMALLEST, LARGEST], or that has at most
`direct_below` non-zero inputs, is computed directly: y[j] = sum of x[i] W[i, j], non-zero inputs only where every
weight is finite. Scratch a thread: U [width][16] and V [width][16] floats.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import (
    INPUTS,
    NO_LIMIT,
    OUTPUTS,
    PRODUCT,
    ROWS,
    X_ROW_STRIDE,
    X_SCALE,
    X,
    finish,
    finish16,
    float32_array,
    float_at,
    int8_array,
    int32_array,
    int64_array,
    plain_epilogue,
    row_start,
    uint16_array,
)
from hashinfer.kernels.blocks import dyadic_weight
from hashinfer.kernels.hadamard import hadamard, modulated_hadamard
from hashinfer.kernels.hashing import col_sign, flip_by_columns, permute, row_sign, weight
from hashinfer.kernels.intrinsics import load16, mul16, splat16, store16
from hashinfer.kernels.jit import device, entry
from hashinfer.kernels.rows import read_rows

GROUP_LANES = 16
ROW_LANES = 16
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
    "folded",
    "direct",
    "direct_below",
    "skip_zeros",
)
W, BUCKETS, SEED, WIDTH, HALF, SPECTRUM, FOLDED, DIRECT, DIRECT_BELOW, SKIP_ZEROS = range(len(PRODUCT), len(FIELDS))
"""folded: address of H u, float32 [rows, width]; direct: address of int64 [rows], 1 where a row goes without transform;
direct_below: at most this many non-zero inputs go directly; skip_zeros: 1 where every weight is finite."""


def scratch_bytes(width: int) -> int:
    """Bytes of scratch a thread for the entries of this module."""
    return 4 * width * (ROW_LANES + GROUP_LANES)


@device
def chunk_lanes(groups: Any, chunk: Any) -> Any:
    """Lanes of a chunk: its groups rounded up to a power of two."""
    there = min(GROUP_LANES, groups - chunk * GROUP_LANES)
    lanes = 1
    while lanes < there:
        lanes *= 2
    return lanes


@device
def make_spectrum(w: Any, width: Any, spectrum: Any) -> None:
    """Write H w_g / width for each group of w [groups * width] into `spectrum`."""
    groups, at = w.size // width, 0
    factor = np.float32(1.0) / np.float32(width)
    for chunk in range((groups + GROUP_LANES - 1) // GROUP_LANES):
        lanes = chunk_lanes(groups, chunk)
        part = spectrum[at : at + width * lanes]
        for lane in range(lanes):
            g = chunk * GROUP_LANES + lane
            for k in range(width):
                part[k * lanes + lane] = weight(w, g * width + k) * factor if g < groups else np.float32(0.0)
        hadamard(part, width, lanes)
        at += width * lanes


SPECTRUM_FIELDS = ("w", "buckets", "width", "spectrum", "floats")


@entry(*SPECTRUM_FIELDS)
def dyadic_spectrum_f32(args, tile, scratch):  # type: ignore[no-untyped-def]
    """make_spectrum as an entry of one tile; `floats` is the length of the spectrum."""
    make_spectrum(float32_array(args[0], args[1]), args[2], float32_array(args[3], args[4]))


@entry(*SPECTRUM_FIELDS)
def dyadic_spectrum_f16(args, tile, scratch):  # type: ignore[no-untyped-def]
    make_spectrum(uint16_array(args[0], args[1]), args[2], float32_array(args[3], args[4]))


@entry(*SPECTRUM_FIELDS)
def dyadic_spectrum_i8(args, tile, scratch):  # type: ignore[no-untyped-def]
    make_spectrum(int8_array(args[0], args[1]), args[2], float32_array(args[3], args[4]))


@device
def must_go_direct(u: Any, start: Any, step: Any, width: Any) -> Any:
    """Whether u[start + k step], k < width, is not finite or has a largest magnitude outside the safe range."""
    bits = u.view(np.uint32)
    largest = np.uint32(0)
    for k in range(width):
        # Without its sign bit a float orders as an integer does, Inf and NaN above all numbers.
        magnitude = np.uint32(bits[start + k * step] & np.uint32(0x7FFFFFFF))
        largest = max(largest, magnitude)
    return largest != np.uint32(0) and not SMALLEST_BITS <= largest <= LARGEST_BITS


@device
def fold_row(x: Any, scale: Any, inputs: Any, width: Any, seed: Any, u: Any) -> Any:
    """u[k] = sum of s(i) scale x[i] over i = k (mod width); returns the number of non-zero inputs."""
    for k in range(width):
        u[k] = np.float32(0.0)
    nonzero = 0
    for i0 in range(0, inputs, width):
        for k in range(min(width, inputs - i0)):
            value = x[i0 + k] * scale
            u[k] += row_sign(i0 + k, seed) * value
            nonzero += 1 if value != np.float32(0.0) else 0
    return nonzero


@device
def list_signed(x: Any, scale: Any, inputs: Any, seed: Any, indices: Any, values: Any) -> Any:
    """Indices and s(i) scale x[i] of the non-zero inputs; returns how many. The lists must hold them all."""
    count = 0
    for i in range(inputs):
        if x[i] != np.float32(0.0):
            indices[count] = np.int32(i)
            values[count] = row_sign(i, seed) * (x[i] * scale)
            count += 1
    return count


@device
def direct_output(
    x: Any,
    scale: Any,
    inputs: Any,
    w: Any,
    buckets: Any,
    seed: Any,
    width: Any,
    half: Any,
    skip_zeros: Any,
    j: Any,
) -> Any:
    """y[j] by XOR, input by input."""
    total = np.float32(0.0)
    for i in range(inputs):
        value = x[i] * scale
        if skip_zeros == 0 or value != np.float32(0.0):
            total += value * dyadic_weight(w, buckets, seed, width, half, i, j)
    return total


@device
def direct_row(args: Any, r: Any, x: Any, w: Any, chunk: Any, scratch: Any) -> None:
    """The outputs of one chunk's groups (of all groups where chunk < 0) for row r, without the transform."""
    width, half, seed, inputs = args[WIDTH], args[HALF], np.uint32(args[SEED]), args[INPUTS]
    groups, scale = args[BUCKETS] // width, float_at(args, X_SCALE)
    first, last = (0, groups) if chunk < 0 else (chunk * GROUP_LANES, min(groups, (chunk + 1) * GROUP_LANES))
    room, nonzero = width * GROUP_LANES // 2, 0
    for i in range(inputs):
        nonzero += 1 if x[i] != np.float32(0.0) else 0
    start = row_start(args, r)
    listed = args[SKIP_ZEROS] != 0 and nonzero <= room
    indices, values = int32_array(scratch, room), float32_array(scratch + 4 * room, room)
    if listed:
        list_signed(x, scale, inputs, seed, indices, values)
    for t in range((args[OUTPUTS] + groups - 1) // groups):
        perm = np.int32(permute(t, width, half, seed))
        for g in range(first, min(last, args[OUTPUTS] - t * groups)):
            j = t * groups + g
            if listed:
                total, base, low = np.float32(0.0), g * width, np.int32(width - 1)
                for q in range(nonzero):
                    total += values[q] * weight(w, base + np.int64((indices[q] & low) ^ perm))
                finish(args, start, r, j, total * col_sign(j, seed))
            else:
                finish(
                    args,
                    start,
                    r,
                    j,
                    direct_output(x, scale, inputs, w, args[BUCKETS], seed, width, half, args[SKIP_ZEROS], j),
                )


@device
def write_groups(args: Any, r: Any, chunk: Any, lanes: Any, v: Any) -> None:
    """Outputs of row r from a transformed chunk v[width, lanes]."""
    width, half, seed = args[WIDTH], args[HALF], np.uint32(args[SEED])
    groups, g0, outputs = args[BUCKETS] // width, chunk * GROUP_LANES, args[OUTPUTS]
    there, start = min(lanes, groups - g0), row_start(args, r)
    # A vector of a chunk with fewer groups runs into the outputs of the next t, which come after it: so only where no
    # other chunk has written there.
    vectors = lanes == 16 and (there == 16 or groups < 16) and plain_epilogue(args)
    for t in range((outputs + groups - 1) // groups):
        at, j0 = np.int64(permute(t, width, half, seed)) * lanes, t * groups + g0
        if vectors and j0 + 16 <= outputs:
            finish16(args, start, r, j0, flip_by_columns(load16(v, at), j0, seed))
            continue
        for lane in range(min(there, outputs - j0)):
            finish(args, start, r, j0 + lane, v[at + lane] * col_sign(j0 + lane, seed))


@entry(*FIELDS)
def dyadic_forward(args, tile, scratch):  # type: ignore[no-untyped-def]
    """H u of row `tile`, and whether the row goes directly. For few rows; dyadic_inverse comes behind it."""
    x = float32_array(args[X] + 4 * tile * args[X_ROW_STRIDE], args[INPUTS])
    width = args[WIDTH]
    u = float32_array(args[FOLDED] + 4 * tile * width, width)
    direct = int64_array(args[DIRECT], args[ROWS])
    nonzero = fold_row(x, float_at(args, X_SCALE), args[INPUTS], width, np.uint32(args[SEED]), u)
    if (args[SKIP_ZEROS] != 0 and nonzero <= args[DIRECT_BELOW]) or must_go_direct(u, 0, 1, width):
        direct[tile] = 1
        return
    direct[tile] = 0
    hadamard(u, width, 1)


@device
def _inverse(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    width = args[WIDTH]
    groups = args[BUCKETS] // width
    chunks = (groups + GROUP_LANES - 1) // GROUP_LANES
    r, chunk = tile // chunks, tile % chunks
    if int64_array(args[DIRECT], args[ROWS])[r] != 0:
        x = float32_array(args[X] + 4 * r * args[X_ROW_STRIDE], args[INPUTS])
        direct_row(args, r, x, w, chunk, scratch)
        return
    lanes = chunk_lanes(groups, chunk)
    spectrum = float32_array(args[SPECTRUM], NO_LIMIT)
    u, v = float32_array(args[FOLDED] + 4 * r * width, width), float32_array(scratch, width * GROUP_LANES)
    modulated_hadamard(spectrum, chunk * GROUP_LANES * width, u, 0, 1, width, lanes, v)
    write_groups(args, r, chunk, lanes, v)


@entry(*FIELDS)
def dyadic_inverse_f32(args, tile, scratch):  # type: ignore[no-untyped-def]
    """One chunk of one row: tile = row * chunks + chunk."""
    _inverse(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_inverse_f16(args, tile, scratch):  # type: ignore[no-untyped-def]
    _inverse(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_inverse_i8(args, tile, scratch):  # type: ignore[no-untyped-def]
    _inverse(args, tile, scratch, int8_array(args[W], args[BUCKETS]))


@device
def fold_rows(args: Any, r0: Any, count: Any, u: Any, buffer: Any, room: Any) -> Any:
    """u[k, c] = folded inputs of row r0 + c, 16 rows as lanes, read through `buffer` of `room` floats."""
    width, seed, inputs = args[WIDTH], np.uint32(args[SEED]), args[INPUTS]
    for k in range(width * ROW_LANES):
        u[k] = np.float32(0.0)
    length = min(inputs, room // ROW_LANES)
    for i0 in range(0, inputs, length):
        ni = min(length, inputs - i0)
        read_rows(args, r0, count, i0, ni, buffer)
        for i in range(ni):
            sign, at = row_sign(i0 + i, seed), ((i0 + i) & (width - 1)) * ROW_LANES
            for c in range(count):
                u[at + c] += sign * buffer[c * ni + i]


@device
def _rows(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    width, half, seed = args[WIDTH], args[HALF], np.uint32(args[SEED])
    groups, r0 = args[BUCKETS] // width, tile * ROW_LANES
    count = min(ROW_LANES, args[ROWS] - r0)
    u = float32_array(scratch, width * ROW_LANES)
    v = float32_array(scratch + 4 * width * ROW_LANES, width * GROUP_LANES)
    spectrum = float32_array(args[SPECTRUM], NO_LIMIT)
    fold_rows(args, r0, count, u, v, width * GROUP_LANES)
    direct = 0
    for c in range(count):
        if must_go_direct(u, c, ROW_LANES, width):
            direct |= 1 << c
            for k in range(width):
                u[k * ROW_LANES + c] = np.float32(0.0)
    hadamard(u, width, ROW_LANES)
    at = 0
    for chunk in range((groups + GROUP_LANES - 1) // GROUP_LANES):
        lanes = chunk_lanes(groups, chunk)
        if lanes >= 8 or count < 4:
            for c in range(count):
                if direct >> c & 1 == 0:
                    modulated_hadamard(spectrum, at, u, c, ROW_LANES, width, lanes, v)
                    write_groups(args, r0 + c, chunk, lanes, v)
        else:
            for lane in range(min(lanes, groups - chunk * GROUP_LANES)):
                for k in range(width):
                    s = splat16(spectrum[at + k * lanes + lane])
                    store16(v, k * 16, mul16(s, load16(u, k * 16)))
                hadamard(v, width, ROW_LANES)
                g = chunk * GROUP_LANES + lane
                for t in range((args[OUTPUTS] - g + groups - 1) // groups):
                    j = t * groups + g
                    source, sign = np.int64(permute(t, width, half, seed)) * ROW_LANES, col_sign(j, seed)
                    for c in range(count):
                        if direct >> c & 1 == 0:
                            finish(args, row_start(args, r0 + c), r0 + c, j, sign * v[source + c])
        at += width * lanes
    if direct != 0:
        _direct_rows(args, r0, count, direct, w, scratch)


@device
def _direct_rows(args: Any, r0: Any, count: Any, direct: Any, w: Any, scratch: Any) -> None:
    """Rows marked in `direct`, one input chunk at a time, summed in scratch-sized strips of outputs."""
    width, half, seed, inputs = args[WIDTH], args[HALF], np.uint32(args[SEED]), args[INPUTS]
    room = width * (ROW_LANES + GROUP_LANES) // 2
    values, sums = float32_array(scratch, room), float32_array(scratch + 4 * room, room)
    for c in range(count):
        if direct >> c & 1 == 0:
            continue
        start = row_start(args, r0 + c)
        for j0 in range(0, args[OUTPUTS], room):
            nj = min(room, args[OUTPUTS] - j0)
            for j in range(nj):
                sums[j] = np.float32(0.0)
            for i0 in range(0, inputs, room):
                ni = min(room, inputs - i0)
                read_rows(args, r0 + c, 1, i0, ni, values)
                for i in range(ni):
                    if args[SKIP_ZEROS] == 0 or values[i] != np.float32(0.0):
                        for j in range(nj):
                            sums[j] += values[i] * dyadic_weight(w, args[BUCKETS], seed, width, half, i0 + i, j0 + j)
            for j in range(nj):
                finish(args, start, r0 + c, j0 + j, sums[j])


@entry(*FIELDS)
def dyadic_rows_f32(args, tile, scratch):  # type: ignore[no-untyped-def]
    """Sixteen rows, all outputs. For batches and convolutions."""
    _rows(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_rows_f16(args, tile, scratch):  # type: ignore[no-untyped-def]
    _rows(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_rows_i8(args, tile, scratch):  # type: ignore[no-untyped-def]
    _rows(args, tile, scratch, int8_array(args[W], args[BUCKETS]))


@device
def _transposed(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    """x @ W^T for row `tile`: inputs are the columns of W, outputs its rows."""
    width, half, seed = args[WIDTH], args[HALF], np.uint32(args[SEED])
    groups, inputs = args[BUCKETS] // width, args[INPUTS]
    x, scale = float32_array(args[X] + 4 * tile * args[X_ROW_STRIDE], inputs), float_at(args, X_SCALE)
    u, v = float32_array(scratch, width), float32_array(scratch + 4 * width, width * GROUP_LANES)
    start = row_start(args, tile)
    if must_go_direct(x, 0, 1, inputs):
        for i in range(args[OUTPUTS]):
            total = np.float32(0.0)
            for j in range(inputs):
                if args[SKIP_ZEROS] == 0 or x[j] != np.float32(0.0):
                    total += x[j] * scale * dyadic_weight(w, args[BUCKETS], seed, width, half, i, j)
            finish(args, start, tile, i, total)
        return
    spectrum = float32_array(args[SPECTRUM], NO_LIMIT)
    for k in range(width):
        u[k] = np.float32(0.0)
    at = 0
    for chunk in range((groups + GROUP_LANES - 1) // GROUP_LANES):
        lanes, g0 = chunk_lanes(groups, chunk), chunk * GROUP_LANES
        there = min(lanes, groups - g0)
        for k in range(width * lanes):
            v[k] = np.float32(0.0)
        for t in range((inputs + groups - 1) // groups):
            to, j0 = np.int64(permute(t, width, half, seed)) * lanes, t * groups + g0
            for lane in range(min(there, inputs - j0)):
                v[to + lane] += col_sign(j0 + lane, seed) * (x[j0 + lane] * scale)
        hadamard(v, width, lanes)
        for k in range(width):
            total = np.float32(0.0)
            for lane in range(lanes):
                total += spectrum[at + k * lanes + lane] * v[k * lanes + lane]
            u[k] += total
        at += width * lanes
    hadamard(u, width, 1)
    for i in range(args[OUTPUTS]):
        finish(args, start, tile, i, row_sign(i, seed) * u[i & (width - 1)])


@entry(*FIELDS)
def dyadic_transposed_f32(args, tile, scratch):  # type: ignore[no-untyped-def]
    """One row of x @ W^T."""
    _transposed(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_transposed_f16(args, tile, scratch):  # type: ignore[no-untyped-def]
    _transposed(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_transposed_i8(args, tile, scratch):  # type: ignore[no-untyped-def]
    _transposed(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
