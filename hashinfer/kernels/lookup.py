"""Rows of a virtual table by their ids, hashed where they are read; bags of rows summed as they are.

A row is exact but for the scale of stored weights; a sum of n rows is within n eps sum |W| of the exact one.
Scratch: states, signed slots and signed scales of CHUNK ids.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import float_at
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.hashing import column_word, first_bucket, slot_sign, weight, xxh32_prefix
from hashinfer.kernels.jit import device, entry
from hashinfer.kernels.vectors import (
    float32_array,
    int8_array,
    int32_array,
    int64_array,
    intp,
    mul16,
    splat16,
    store16,
    uint16_array,
    weights16,
)
from hashinfer.kernels.xxh32 import add_list, hash_list

IDS_PER_TILE, CHUNK = 16, 256
SCRATCH_BYTES = 4 * 3 * CHUNK

FIELDS = ("ids", "id_bytes", "count", "bag", "table_rows", "cols", "y", "w", "buckets", "seed", "block", "alpha")
IDS, ID_BYTES, COUNT, BAG, TABLE_ROWS, COLS, Y, W, BUCKETS, SEED, BLOCK, ALPHA = range(len(FIELDS))
NO_BAG = -1
"""bag: how many ids in a row are summed into one row of y, or NO_BAG; count: all ids; alpha: the scale of each row."""


@device
def _read_ids(args: Any, first: Any, count: Any, states: Any) -> None:
    """The hash states of `count` ids from `first` on; negative ids count from the table's end."""
    seed = np.uint32(args[SEED])
    for q in range(count):
        if args[ID_BYTES] == 4:
            i = intp(int32_array(args[IDS], args[COUNT])[first + q])
        else:
            i = intp(int64_array(args[IDS], args[COUNT])[first + q])
        if i < 0:
            i += args[TABLE_ROWS]
        states[q] = np.int32(xxh32_prefix(i, seed))


@device
def _rows(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    states, found = int32_array(scratch, CHUNK), int32_array(scratch + 4 * CHUNK, CHUNK)
    first, cols, block = tile * IDS_PER_TILE, args[COLS], args[BLOCK]
    count, slots = min(IDS_PER_TILE, args[COUNT] - first), 2 * (args[BUCKETS] - block + 1)
    alpha, y = float_at(args, ALPHA), float32_array(args[Y] + 4 * first * cols, count * cols)
    _read_ids(args, first, count, states)
    for start in range(0, cols, block):
        hash_list(states, count, column_word(start // block), slots, found)
        length = min(block, cols - start)
        whole = length & ~15
        for q in range(count):
            slot = np.uint32(found[q])
            scale, source = alpha * slot_sign(slot), first_bucket(slot)
            at = q * cols + start
            for k in range(0, whole, 16):
                store16(y, at + k, mul16(splat16(scale), weights16(w, source + k)))
            for k in range(whole, length):
                y[at + k] = scale * weight(w, source + k)


@device
def _bag(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    states, found = int32_array(scratch, CHUNK), int32_array(scratch + 4 * CHUNK, CHUNK)
    signed, cols, block = float32_array(scratch + 8 * CHUNK, CHUNK), args[COLS], args[BLOCK]
    slots, alpha = 2 * (args[BUCKETS] - block + 1), float_at(args, ALPHA)
    y = float32_array(args[Y] + 4 * tile * cols, cols)
    clear(y)
    for first in range(0, args[BAG], CHUNK):
        count = min(CHUNK, args[BAG] - first)
        _read_ids(args, tile * args[BAG] + first, count, states)
        for start in range(0, cols, block):
            hash_list(states, count, column_word(start // block), slots, found)
            for q in range(count):
                signed[q] = alpha * slot_sign(np.uint32(found[q]))
            length = min(block, cols - start)
            add_list(signed, found, count, w, 0, length, length, y, start)


@device
def _lookup(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    if args[BAG] == NO_BAG:
        _rows(args, tile, scratch, w)
    else:
        _bag(args, tile, scratch, w)


@entry(*FIELDS)
def xxh32_lookup_f32(args: Any, tile: Any, scratch: Any) -> None:
    """IDS_PER_TILE rows, or one bag."""
    _lookup(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_lookup_f16(args: Any, tile: Any, scratch: Any) -> None:
    _lookup(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_lookup_i8(args: Any, tile: Any, scratch: Any) -> None:
    _lookup(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
