"""The xxh32 scheme for few rows: the hash is recomputed inline for each non-zero input, W is never written down.

The non-zero inputs of a row are listed once a tile, with the hash state that all cells of their row of W share.
With block 1 each output is one reduction over the list; with longer runs each input adds whole runs of w into a strip
of sums.
|error| <= inputs eps sum |x| |W|, element by element.

Scratch: lists of 4096 states, values, signed slots and signed values, 1024 sums = 68 KiB.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import INPUTS, OUTPUTS, PRODUCT, ROWS, finish_sums, row_at
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.hashing import column_word, first_bucket, slot_sign, weight, xxh32_prefix
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.vectors import (
    add16,
    add_word16,
    flip_odd16,
    float32_array,
    fma16,
    int8_array,
    int32_array,
    intp_array,
    load16,
    nonzero16,
    pick16,
    splat16,
    store16,
    sum16,
    uint16_array,
    weights16,
    xxh32_slots16,
)

STRIP, LIST = 1024, 4096
SCRATCH_BYTES = 4 * (4 * LIST + STRIP + 16)

FIELDS = (*PRODUCT, "w", "buckets", "seed", "block", "skip_zeros", "strip", "sparse")
W, BUCKETS, SEED, BLOCK, SKIP_ZEROS, TILE_OUTPUTS, SPARSE = range(len(PRODUCT), len(FIELDS))
"""skip_zeros: 1 where every weight is finite, so that a zero input adds nothing; strip: outputs of a tile, at most
STRIP; sparse: 0, or where count_inputs has written whether these rows are this kernel's."""

COUNT_FIELDS = (*PRODUCT, "most", "sparse")
MOST, FLAG = range(len(PRODUCT), len(COUNT_FIELDS))


@entry(*COUNT_FIELDS)
def count_inputs(args: Any, tile: Any, scratch: Any) -> None:
    """sparse [1] intp: 1 where at most `most` inputs of all rows are not zero, else 0. One tile."""
    count, whole = 0, args[INPUTS] & ~15
    for r in range(args[ROWS]):
        x, _ = row_at(args, r)
        for i in range(0, whole, 16):
            count += nonzero16(load16(x, i))
        for i in range(whole, args[INPUTS]):
            count += 1 if x[i] != np.float32(0.0) else 0
    intp_array(args[FLAG], 1)[0] = 1 if count <= args[MOST] else 0


@device
def list_inputs(x: Any, scale: Any, i0: Any, length: Any, seed: Any, skip_zeros: Any, states: Any, values: Any) -> Any:
    """Hash states and scaled values of x[i0 : i0 + length], without zeros where they may be skipped; how many."""
    count = 0
    for i in range(i0, i0 + length):
        value = x[i] * scale
        states[count] = np.int32(i)
        values[count] = value
        count += 1 if skip_zeros == 0 or value != np.float32(0.0) else 0
    for q in range(count):
        states[q] = np.int32(xxh32_prefix(np.uint32(states[q]), seed))
    return count


@inlined
def hash_list(states: Any, count: Any, word: Any, slots: Any, found: Any) -> None:
    """Signed slots of the listed inputs in one column or run, whose `word` is added to each state. Whole vectors."""
    for q in range(0, count, 16):
        store16(found, q, xxh32_slots16(add_word16(load16(states, q), word), np.uint32(slots)))


@device
def add_products(
    states: Any, values: Any, count: Any, w: Any, slots: Any, j0: Any, nj: Any, sums: Any, found: Any
) -> None:
    """sums[j] += sum of values * W[., j0 + j] over the listed inputs, block 1."""
    whole = count & ~15
    for j in range(nj):
        hash_list(states, count, column_word(j0 + j), slots, found)
        total = splat16(np.float32(0.0))
        for q in range(0, whole, 16):
            total = fma16(flip_odd16(load16(values, q), load16(found, q)), pick16(w, found, q), total)
        rest = np.float32(0.0)
        for q in range(whole, count):
            slot = np.uint32(found[q])
            rest += values[q] * slot_sign(slot) * weight(w, first_bucket(slot))
        sums[j] += rest + sum16(total)


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
    found: Any,
    signed: Any,
) -> None:
    """As add_products for runs of `block` outputs that share one hash."""
    run, t, j = j0 // block, j0 % block, 0
    while j < nj:
        length = min(block - t, nj - j)
        hash_list(states, count, column_word(run), slots, found)
        for q in range(0, count, 16):
            store16(signed, q, flip_odd16(load16(values, q), load16(found, q)))
        add_list(signed, found, count, w, t, length, block - t, sums, j)
        j += length
        run += 1
        t = 0


@inlined
def _place(found: Any, q: Any, t: Any) -> Any:
    return first_bucket(np.uint32(found[q])) + t


@device
def add_list(signed: Any, found: Any, count: Any, w: Any, t: Any, length: Any, room: Any, sums: Any, at: Any) -> None:
    """sums[at + k] += sum over the list of signed * w[first bucket + t + k], k < length <= room.

    Up to 15 sums behind them are written as well where the run has as much room.
    """
    whole = (length + 15) & ~15
    if whole > room:
        whole = length & ~15
    for k in range(0, whole, 16):
        a, b, c, d = load16(sums, at + k), splat16(np.float32(0.0)), splat16(np.float32(0.0)), splat16(np.float32(0.0))
        for q in range(0, count - 3, 4):
            a = fma16(splat16(signed[q]), weights16(w, _place(found, q, t + k)), a)
            b = fma16(splat16(signed[q + 1]), weights16(w, _place(found, q + 1, t + k)), b)
            c = fma16(splat16(signed[q + 2]), weights16(w, _place(found, q + 2, t + k)), c)
            d = fma16(splat16(signed[q + 3]), weights16(w, _place(found, q + 3, t + k)), d)
        for q in range(count & ~3, count):
            a = fma16(splat16(signed[q]), weights16(w, _place(found, q, t + k)), a)
        store16(sums, at + k, add16(add16(a, b), add16(c, d)))
    for k in range(whole, length):
        total = np.float32(0.0)
        for q in range(count):
            total += signed[q] * weight(w, _place(found, q, t + k))
        sums[at + k] += total


@device
def _row(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    if args[SPARSE] != 0 and intp_array(args[SPARSE], 1)[0] == 0:
        return
    strip = args[TILE_OUTPUTS]
    strips = (args[OUTPUTS] + strip - 1) // strip
    r, j0 = tile // strips, tile % strips * strip
    nj, block, seed = min(strip, args[OUTPUTS] - j0), args[BLOCK], np.uint32(args[SEED])
    slots = 2 * (args[BUCKETS] - block + 1)
    x, scale = row_at(args, r)
    states, values = int32_array(scratch, LIST), float32_array(scratch + 4 * LIST, LIST)
    found, signed = int32_array(scratch + 8 * LIST, LIST), float32_array(scratch + 12 * LIST, LIST)
    sums = float32_array(scratch + 16 * LIST, STRIP + 16)
    clear(sums[:nj])
    for i0 in range(0, args[INPUTS], LIST):
        length = min(LIST, args[INPUTS] - i0)
        count = list_inputs(x, scale, i0, length, seed, args[SKIP_ZEROS], states, values)
        if block == 1:
            add_products(states, values, count, w, slots, j0, nj, sums, found)
        else:
            add_runs(states, values, count, w, slots, block, j0, nj, sums, found, signed)
    finish_sums(args, r, j0, nj, sums, 0, None)


@entry(*FIELDS)
def xxh32_row_f32(args: Any, tile: Any, scratch: Any) -> None:
    _row(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_row_f16(args: Any, tile: Any, scratch: Any) -> None:
    _row(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_row_i8(args: Any, tile: Any, scratch: Any) -> None:
    _row(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
