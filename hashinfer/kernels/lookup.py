"""Gather from a virtual table: rows of W by their ids, hashed where they are read."""

from __future__ import annotations

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import NO_LIMIT, float_at
from hashinfer.kernels.hashing import signed_slot, slot_sign, weight, xxh32_finish, xxh32_prefix
from hashinfer.kernels.intrinsics import float32_array, int8_array, int32_array, int64_array, uint16_array
from hashinfer.kernels.jit import device, entry

IDS_PER_TILE = 16

FIELDS = ("ids", "id_bytes", "count", "table_rows", "cols", "y", "w", "buckets", "seed", "block", "alpha")
IDS, ID_BYTES, COUNT, TABLE_ROWS, COLS, Y, W, BUCKETS, SEED, BLOCK, ALPHA = range(len(FIELDS))


@device
def lookup_row(i: Any, cols: Any, w: Any, buckets: Any, seed: Any, block: Any, alpha: Any, y: Any, at: Any) -> None:
    """y[at : at + cols] = alpha W[i, :] of the xxh32 scheme."""
    prefix, slots = xxh32_prefix(i, seed), 2 * (buckets - block + 1)
    for start in range(0, cols, block):
        slot = signed_slot(xxh32_finish(prefix, start // block), slots)
        scale, source = alpha * slot_sign(slot), np.int64(slot >> np.uint32(1))
        for t in range(min(block, cols - start)):
            y[at + start + t] = scale * weight(w, source + t)


@device
def _lookup(args: Any, tile: Any, w: Any) -> None:
    y = float32_array(args[Y], NO_LIMIT)
    first = tile * IDS_PER_TILE
    for n in range(first, min(first + IDS_PER_TILE, args[COUNT])):
        if args[ID_BYTES] == 4:
            i = np.int64(int32_array(args[IDS], args[COUNT])[n])
        else:
            i = int64_array(args[IDS], args[COUNT])[n]
        if i < 0:
            i += args[TABLE_ROWS]
        lookup_row(
            i,
            args[COLS],
            w,
            args[BUCKETS],
            np.uint32(args[SEED]),
            args[BLOCK],
            float_at(args, ALPHA),
            y,
            n * args[COLS],
        )


@entry(*FIELDS)
def xxh32_lookup_f32(args, tile, scratch):  # type: ignore[no-untyped-def]
    _lookup(args, tile, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_lookup_f16(args, tile, scratch):  # type: ignore[no-untyped-def]
    _lookup(args, tile, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def xxh32_lookup_i8(args, tile, scratch):  # type: ignore[no-untyped-def]
    _lookup(args, tile, int8_array(args[W], args[BUCKETS]))
