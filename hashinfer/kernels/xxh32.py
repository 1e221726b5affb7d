"""The xxh32 scheme for few rows: the hash is recomputed inline for each non-zero input, W is never written down.

The non-zero inputs of a row are listed once a tile, with the hash state that all cells of their row of W share.
With block 1 each output is one reduction over the list; with longer runs each input adds whole runs of w into a strip
of sums.
|error| <= inputs eps sum |x| |W|, element by element.

Scratch: lists of 4096 states, values, first buckets and signed values, 256 sums = 65 KiB.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from hashinfer.kernels.arguments import (
    INPUTS,
    OUTPUTS,
    PRODUCT,
    X_ROW_STRIDE,
    X_SCALE,
    X,
    finish,
    float32_array,
    float_at,
    int8_array,
    int32_array,
    row_start,
    uint16_array,
)
from hashinfer.kernels.hashing import signed_slot, slot_sign, weight, xxh32_finish, xxh32_prefix
from hashinfer.kernels.intrinsics import add16, fma16, load16, splat16, store16
from hashinfer.kernels.jit import device, entry

STRIP, LIST = 256, 4096
SCRATCH_BYTES = 4 * (4 * LIST + STRIP)

FIELDS = (*PRODUCT, "w", "buckets", "seed", "block", "skip_zeros")
W, BUCKETS, SEED, BLOCK, SKIP_ZEROS = range(len(PRODUCT), len(FIELDS))
"""skip_zeros: 1 where every weight is finite, so that a zero input adds nothing."""


@device
def list_inputs(x: Any, scale: Any, i0: Any, length: Any, seed: Any, skip_zeros: Any, states: Any, values: Any) -> Any:
    """Hash states and scaled values of x[i0 : i0 + length], without zeros where they may be skipped; how many."""
    count = 0
    for i in range(i0, i0 + length):
        value = x[i] * scale
        states[count] = np.int32(xxh32_prefix(i, seed))
        values[count] = value
        if skip_zeros == 0 or value != np.float32(0.0):
            count += 1
    return count


@device
def add_products(states: Any, values: Any, count: Any, w: Any, slots: Any, j0: Any, nj: Any, sums: Any) -> None:
    """sums[j] += sum of values * W[., j0 + j] over the listed inputs, block 1."""
    for j in range(nj):
        b = np.uint32(j0 + j)
        total = np.float32(0.0)
        for q in range(count):
            slot = signed_slot(xxh32_finish(np.uint32(states[q]), b), slots)
            total += values[q] * slot_sign(slot) * weight(w, np.int64(slot >> np.uint32(1)))
        sums[j] += total


@device
def hash_list(states: Any, values: Any, count: Any, slots: Any, run: Any, starts: Any, signed: Any) -> None:
    """First bucket and signed value of each listed input for one run of outputs."""
    for q in range(count):
        slot = signed_slot(xxh32_finish(np.uint32(states[q]), np.uint32(run)), slots)
        starts[q] = np.int32(slot >> np.uint32(1))
        signed[q] = values[q] * slot_sign(slot)


@device
def add_runs(
    states: Any,
    values: Any,
    count: Any,
    w: Any,
    slots: Any,
    block: Any,
    j0: Any,
    nj: Any,
    sums: Any,
    starts: Any,
    signed: Any,
) -> None:
    """As add_products for runs of `block` outputs that share one hash."""
    run, t, j = j0 // block, j0 % block, 0
    while j < nj:
        length = min(block - t, nj - j)
        hash_list(states, values, count, slots, run, starts, signed)
        add_list(signed, starts, count, w, t, length, sums, j)
        j += length
        run += 1
        t = 0


def add_list(signed: Any, starts: Any, count: Any, w: Any, t: Any, length: Any, sums: Any, at: Any) -> None:
    """sums[at + k] += sum over the list of signed * w[starts + t + k], k < length."""
    for q in range(count):
        for k in range(length):
            sums[at + k] += signed[q] * weight(w, starts[q] + t + k)


@overload(add_list, strict=False)  # type: ignore[untyped-decorator]
def _add_list(signed: Any, starts: Any, count: Any, w: Any, t: Any, length: Any, sums: Any, at: Any) -> Any:
    if w.dtype.name != "float32":
        return add_list

    def vectors(signed, starts, count, w, t, length, sums, at):  # type: ignore[no-untyped-def]
        whole = length - length % 16
        for k in range(0, whole, 16):
            even, odd = load16(sums, at + k), splat16(np.float32(0.0))
            for q in range(0, count - 1, 2):
                even = fma16(splat16(signed[q]), load16(w, np.int64(starts[q]) + t + k), even)
                odd = fma16(splat16(signed[q + 1]), load16(w, np.int64(starts[q + 1]) + t + k), odd)
            if count % 2:
                even = fma16(splat16(signed[count - 1]), load16(w, np.int64(starts[count - 1]) + t + k), even)
            store16(sums, at + k, add16(even, odd))
        for k in range(whole, length):
            total = np.float32(0.0)
            for q in range(count):
                total += signed[q] * w[np.int64(starts[q]) + t + k]
            sums[at + k] += total

    return vectors


@device
def _row(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    strips = (args[OUTPUTS] + STRIP - 1) // STRIP
    r, j0 = tile // strips, tile % strips * STRIP
    nj, block, seed = min(STRIP, args[OUTPUTS] - j0), args[BLOCK], np.uint32(args[SEED])
    slots = 2 * (args[BUCKETS] - block + 1)
    x = float32_array(args[X] + 4 * r * args[X_ROW_STRIDE], args[INPUTS])
    scale = float_at(args, X_SCALE)
    states, values = int32_array(scratch, LIST), float32_array(scratch + 4 * LIST, LIST)
    starts, signed = int32_array(scratch + 8 * LIST, LIST), float32_array(scratch + 12 * LIST, LIST)
    sums = float32_array(scratch + 16 * LIST, STRIP)
    for j in range(nj):
        sums[j] = np.float32(0.0)
    for i0 in range(0, args[INPUTS], LIST):
        length = min(LIST, args[INPUTS] - i0)
        count = list_inputs(x, scale, i0, length, seed, args[SKIP_ZEROS], states, values)
        if block == 1:
            add_products(states, values, count, w, slots, j0, nj, sums)
        else:
            add_runs(states, values, count, w, slots, block, j0, nj, sums, starts, signed)
    start = row_start(args, r)
    for j in range(nj):
        finish(args, start, r, j0 + j, sums[j])


@entry(*FIELDS)
def xxh32_row_f32(args, tile, scratch):  # type: ignore[no-untyped-def]
    _row(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_row_f16(args, tile, scratch):  # type: ignore[no-untyped-def]
    _row(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_row_i8(args, tile, scratch):  # type: ignore[no-untyped-def]
    _row(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
