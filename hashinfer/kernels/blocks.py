"""The general product: a tile of W is written once into scratch and multiplied with a block of rows.

W comes from a dense matrix or from either hash scheme, as it is or transposed; rows come from a matrix or from patches.
Each output sums its inputs in order, in chunks of CHUNK: |error| <= inputs eps sum |x| |W|, element by element.
Scratch: rows [32 x 128], W tile [128 x 64], sums [128 x 64] floats, slots and states [128] = 82 KiB.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import (
    ALPHA,
    INPUTS,
    NO_LIMIT,
    OUTPUTS,
    PRODUCT,
    ROWS,
    Y_ROW_STRIDE,
    X,
    Y,
    finish,
    finish_sums,
    float_at,
    row_at,
    row_start,
)
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.hashing import (
    col_sign,
    column_word,
    column_words16,
    first_bucket,
    permute,
    row_sign,
    signed_slot,
    slot_sign,
    weight,
    xxh32_finish,
    xxh32_prefix,
)
from hashinfer.kernels.isa import SCALAR, TILE_VECTORS
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.rows import read_rows
from hashinfer.kernels.vectors import (
    add_word16,
    flip_odd16,
    float32_array,
    fma16,
    int8_array,
    int32_array,
    intp,
    intp_array,
    intp_at,
    load16,
    mul16,
    narrow_products4,
    pick16,
    products1,
    products4,
    splat16,
    store16,
    transpose16,
    uint16_array,
    uintp,
    weights16,
    xxh32_slots16,
)

ROW_BLOCK, ROWS_AT_ONCE, STRIP, CHUNK = 128, 32, 64, 128
ARGUMENT_BYTES = 512
SCRATCH_BYTES = ARGUMENT_BYTES + 4 * (ROWS_AT_ONCE * CHUNK + CHUNK * STRIP + ROW_BLOCK * STRIP + 2 * CHUNK)
EXPAND_SCRATCH_BYTES = 4 * (CHUNK * STRIP + 2 * CHUNK)

FIRST = len(PRODUCT)
HASHED = (*PRODUCT, "w", "kind", "buckets", "seed", "parameter", "half", "transposed", "first_output", "sparse")
W, KIND, BUCKETS, SEED, PARAMETER, HALF, TRANSPOSED, FIRST_OUTPUT, SPARSE = range(FIRST, len(HASHED))
DENSE_KIND, XXH32_KIND, DYADIC_KIND = range(3)
"""parameter: block or width; half: ceil(log2(width) / 2); outputs start at virtual column first_output; sparse: 0, or
where xxh32.count_inputs has written whether these rows are another kernel's."""
DENSE = (*PRODUCT, "w", "kind", "w_row_stride", "w_col_stride", "offsets")
W_ROW_STRIDE, W_COL_STRIDE, OFFSETS = range(FIRST + 2, len(DENSE))
"""offsets: address of intp [batches, 3], the elements to add to x, w and y for each matrix of a batch."""


@device
def dyadic_weight(w: Any, buckets: Any, seed: Any, width: Any, half: Any, i: Any, j: Any) -> Any:
    """W[i, j] of the dyadic scheme."""
    groups = buckets // width
    t, g = j // groups, j % groups
    within = intp(np.uint32(i & (width - 1)) ^ permute(t, width, half, seed))
    return row_sign(i, seed) * col_sign(j, seed) * weight(w, g * width + within)


@device
def fill_dense(args: Any, w: Any, i0: Any, ni: Any, j0: Any, nj: Any, tile: Any) -> None:
    """tile[ni, 64] = W[i0 : i0 + ni, j0 : j0 + nj]; columns beyond nj are of no account."""
    rs, cs = args[W_ROW_STRIDE], args[W_COL_STRIDE]
    down, across = (ni & ~15, nj & ~15) if rs == 1 else (0, 0)
    for j in range(0, across, 16):
        for i in range(0, down, 16):
            transpose16(w, i0 + i + (j0 + j) * cs, cs, tile, i * STRIP + j, STRIP)
    for i in range(ni):
        at, source, whole = i * STRIP, (i0 + i) * rs + j0 * cs, across if i < down else 0
        if cs == 1:
            whole = nj & ~15
            for j in range(0, whole, 16):
                store16(tile, at + j, load16(w, source + j))
        for j in range(whole, nj):
            tile[at + j] = w[source + j * cs]


@inlined
def _fill_columns(w: Any, i0: Any, ni: Any, j0: Any, nj: Any, seed: Any, slots: Any, tile: Any, found: Any) -> None:
    """fill_xxh32 where block is 1: sixteen columns at a time."""
    for i in range(ni):
        prefix = xxh32_prefix(i0 + i, seed)
        for j in range(0, nj, 16):
            store16(found, j, xxh32_slots16(column_words16(prefix, j0 + j), np.uint32(slots)))
        for j in range(0, nj, 16):
            store16(tile, i * STRIP + j, flip_odd16(pick16(w, found, j), load16(found, j)))


@device
def _fill_runs(
    w: Any, i0: Any, ni: Any, j0: Any, nj: Any, seed: Any, block: Any, slots: Any, tile: Any, found: Any
) -> None:
    """fill_xxh32 where block is above 1: run by run, sixteen rows hashed at a time."""
    for i in range(ni):
        found[CHUNK + i] = np.int32(xxh32_prefix(i0 + i, seed))
    run, t, j = j0 // block, j0 % block, 0
    while j < nj:
        length = min(block - t, nj - j)
        whole = (length + 15) & ~15
        if whole > block - t or j + whole > STRIP:
            whole = length & ~15
        word = column_word(run)
        for i in range(0, ni, 16):
            store16(found, i, xxh32_slots16(add_word16(load16(found, CHUNK + i), word), np.uint32(slots)))
        for i in range(ni):
            slot = np.uint32(found[i])
            sign, source = slot_sign(slot), first_bucket(slot) + t
            factor, at = splat16(sign), i * STRIP + j
            for k in range(0, whole, 16):
                store16(tile, at + k, mul16(factor, weights16(w, source + k)))
            for k in range(whole, length):
                tile[at + k] = sign * weight(w, source + k)
        j += length
        run += 1
        t = 0


@device
def fill_xxh32(args: Any, w: Any, i0: Any, ni: Any, j0: Any, nj: Any, tile: Any, found: Any) -> None:
    """As fill_dense, from the xxh32 scheme. found: int32 [2 CHUNK] of scratch."""
    block, seed = args[PARAMETER], np.uint32(args[SEED])
    slots, j0 = 2 * (args[BUCKETS] - block + 1), j0 + args[FIRST_OUTPUT]
    if args[TRANSPOSED] != 0:
        for i in range(ni):
            run, t = (i0 + i) // block, (i0 + i) % block
            for j in range(nj):
                slot = signed_slot(xxh32_finish(xxh32_prefix(j0 + j, seed), run), slots)
                tile[i * STRIP + j] = slot_sign(slot) * weight(w, first_bucket(slot) + t)
    elif block == 1:
        _fill_columns(w, i0, ni, j0, nj, seed, slots, tile, found)
    else:
        _fill_runs(w, i0, ni, j0, nj, seed, block, slots, tile, found)


@device
def fill_dyadic(args: Any, w: Any, i0: Any, ni: Any, j0: Any, nj: Any, tile: Any) -> None:
    """As fill_dense, from the dyadic scheme."""
    buckets, seed, width, half = args[BUCKETS], np.uint32(args[SEED]), args[PARAMETER], args[HALF]
    groups = buckets // width
    j0 = j0 + args[FIRST_OUTPUT]
    for j in range(nj):
        if args[TRANSPOSED] != 0:
            for i in range(ni):
                tile[i * STRIP + j] = dyadic_weight(w, buckets, seed, width, half, j0 + j, i0 + i)
        else:
            t, g = (j0 + j) // groups, (j0 + j) % groups
            perm, sign = intp(permute(t, width, half, seed)), col_sign(j0 + j, seed)
            for i in range(ni):
                k = ((i0 + i) & (width - 1)) ^ perm
                tile[i * STRIP + j] = sign * row_sign(i0 + i, seed) * weight(w, g * width + k)


@inlined
def store64(y: Any, at: Any, a0: Any, a1: Any, a2: Any, a3: Any) -> None:
    """y[at : at + 64] = four vectors."""
    store16(y, at, a0)
    store16(y, at + 16, a1)
    store16(y, at + 32, a2)
    store16(y, at + 48, a3)


@device
def multiply_tile(rows: Any, step: Any, count: Any, ni: Any, tile: Any, nj: Any, sums: Any) -> None:
    """sums[count, 64] += rows[count, ni] @ tile[ni, 64], at least the first nj columns.

    Of int32, rows and tile are words of two int16. step: from one row to the next.
    """
    r = 0
    while r + 4 <= count:
        for j in range(0, nj, 16 * TILE_VECTORS):
            t, s = r * step, r * STRIP + j
            if nj <= 16 < 16 * TILE_VECTORS:
                narrow_products4(rows, t, step, 1, ni, tile, j, sums, s, STRIP)
            else:
                products4(rows, t, step, 1, ni, tile, j, sums, s, STRIP)
        r += 4
    while r < count:
        products1(rows, r * step, step, 1, ni, tile, 0, sums, r * STRIP, STRIP)
        r += 1


@device
def fill(args: Any, w: Any, i0: Any, ni: Any, j0: Any, nj: Any, tile: Any, found: Any) -> None:
    """tile = the part of W at (i0, j0), whatever W is."""
    if args[KIND] == DENSE_KIND:
        fill_dense(args, w, i0, ni, j0, nj, tile)
    elif args[KIND] == XXH32_KIND:
        fill_xxh32(args, w, i0, ni, j0, nj, tile, found)
    else:
        fill_dyadic(args, w, i0, ni, j0, nj, tile)


@inlined
def strip_at(args: Any, tile: Any) -> Any:
    """(row or block, first output, outputs) of a tile: strip by strip of 64 outputs."""
    strips = (args[OUTPUTS] + STRIP - 1) // STRIP
    j0 = tile % strips * STRIP
    return tile // strips, j0, min(STRIP, args[OUTPUTS] - j0)


@inlined
def block_at(args: Any, tile: Any, rows: Any) -> Any:
    """(first row, rows, first output, outputs) of a tile of a block of `rows`."""
    block, j0, nj = strip_at(args, tile)
    return block * rows, min(rows, args[ROWS] - block * rows), j0, nj


@device
def _block(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    r0, count, j0, nj = block_at(args, tile, ROW_BLOCK)
    rows = float32_array(scratch, ROWS_AT_ONCE * CHUNK)
    w_tile = float32_array(scratch + 4 * ROWS_AT_ONCE * CHUNK, CHUNK * STRIP)
    sums = float32_array(scratch + 4 * (ROWS_AT_ONCE * CHUNK + CHUNK * STRIP), ROW_BLOCK * STRIP)
    found = int32_array(scratch + 4 * (ROWS_AT_ONCE * CHUNK + CHUNK * STRIP + ROW_BLOCK * STRIP), 2 * CHUNK)
    clear(sums[: count * STRIP])
    if nj < STRIP:
        clear(w_tile)
    for i0 in range(0, args[INPUTS], CHUNK):
        ni = min(CHUNK, args[INPUTS] - i0)
        fill(args, w, i0, ni, j0, nj, w_tile, found)
        for first in range(0, count, ROWS_AT_ONCE):
            there = min(ROWS_AT_ONCE, count - first)
            read_rows(args, r0 + first, there, i0, ni, rows)
            multiply_tile(rows, ni, there, ni, w_tile, nj, sums[first * STRIP :])
    for r in range(count):
        finish_sums(args, r0 + r, j0, nj, sums, r * STRIP, None)


@entry(*HASHED)
def block_f32(args: Any, tile: Any, scratch: Any) -> None:
    """128 rows by 64 outputs; tiles are numbered row block by row block. W is dense or hashed, by `kind`."""
    if args[SPARSE] == 0 or intp_array(args[SPARSE], 1)[0] == 0:
        _block(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*HASHED)
def block_f16(args: Any, tile: Any, scratch: Any) -> None:
    """As block_f32 over a float16 weight vector."""
    if args[SPARSE] == 0 or intp_array(args[SPARSE], 1)[0] == 0:
        _block(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*HASHED)
def block_i8(args: Any, tile: Any, scratch: Any) -> None:
    """As block_f32 over an int8 weight vector."""
    if args[SPARSE] == 0 or intp_array(args[SPARSE], 1)[0] == 0:
        _block(args, tile, scratch, int8_array(args[W], args[BUCKETS]))


@device
def of_matrix(args: Any, own: Any, offsets_at: Any, w_bytes: Any, tile: Any) -> Any:
    """own = the arguments for the matrix of a batch that a tile is of; gives the tile's number within it."""
    per_matrix = ((args[ROWS] + ROW_BLOCK - 1) // ROW_BLOCK) * ((args[OUTPUTS] + STRIP - 1) // STRIP)
    matrix = tile // per_matrix
    offsets, first = intp_array(args[offsets_at], NO_LIMIT), 3 * matrix
    for k in range(own.size):
        own[k] = args[k]
    own[X] += 4 * offsets[first]
    own[W] += w_bytes * offsets[first + 1]
    own[Y] += 4 * offsets[first + 2]
    return tile - matrix * per_matrix


@entry(*DENSE)
def dense_block(args: Any, tile: Any, scratch: Any) -> None:
    """Tiles are numbered matrix by matrix of the batch. Scratch: one copy of the arguments in front of the tiles."""
    own = intp_array(scratch, len(DENSE))
    within = of_matrix(args, own, OFFSETS, 4, tile)
    _block(intp_at(scratch), within, scratch + ARGUMENT_BYTES, float32_array(own[W], NO_LIMIT))


@device
def _small_row(args: Any, r: Any, j0: Any, nj: Any, x: Any, w: Any, scratch: Any) -> None:
    """dense_row with no more sums at once than stay in a small core's registers."""
    sums, ws, whole = float32_array(scratch, STRIP), uintp(args[W_ROW_STRIDE]), nj & ~15
    for j in range(0, whole, 16):
        sixteen, at = splat16(np.float32(0.0)), uintp(j0 + j)
        for xi in x:
            sixteen = fma16(splat16(xi), load16(w, intp(at)), sixteen)
            at = uintp(at + ws)
        store16(sums, j, sixteen)
    for j in range(whole, nj):
        total, at = np.float32(0.0), uintp(j0 + j)
        for xi in x:
            total += xi * w[at]
            at = uintp(at + ws)
        sums[j] = total
    finish_sums(args, r, j0, nj, sums, 0, None)


@entry(*DENSE)
def dense_row(args: Any, tile: Any, scratch: Any) -> None:
    """A strip of 64 outputs of one row, W read where it lies. For few rows."""
    r, j0, nj = strip_at(args, tile)
    start, ni, ws, cs = row_start(args, r), args[INPUTS], args[W_ROW_STRIDE], args[W_COL_STRIDE]
    (x, _), w = row_at(args, r), float32_array(args[W], NO_LIMIT)
    if cs == 1 and SCALAR:
        _small_row(args, r, j0, nj, x, w, scratch)
        return
    if cs == 1 and nj == STRIP:
        a0 = a1 = a2 = a3 = splat16(np.float32(0.0))
        for i in range(ni):
            xi, at = splat16(x[i]), i * ws + j0
            a0 = fma16(xi, load16(w, at), a0)
            a1 = fma16(xi, load16(w, at + 16), a1)
            a2 = fma16(xi, load16(w, at + 32), a2)
            a3 = fma16(xi, load16(w, at + 48), a3)
        sums = float32_array(scratch, STRIP)
        store64(sums, 0, a0, a1, a2, a3)
        finish_sums(args, r, j0, STRIP, sums, 0, None)
        return
    for j in range(nj):
        total, at = np.float32(0.0), (j0 + j) * cs
        if ws == 1:
            for i in range(ni):
                total += x[i] * w[at + i]
        else:
            for i in range(ni):
                total += x[i] * w[at + i * ws]
        finish(args, start, r, j0 + j, total)


@device
def _expand(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    i0, ni, j0, nj = block_at(args, tile, CHUNK)
    out, w_tile, alpha = float32_array(args[Y], NO_LIMIT), float32_array(scratch, CHUNK * STRIP), float_at(args, ALPHA)
    fill(args, w, i0, ni, j0, nj, w_tile, int32_array(scratch + 4 * CHUNK * STRIP, 2 * CHUNK))
    for i in range(ni):
        at = (i0 + i) * args[Y_ROW_STRIDE] + j0
        for j in range(nj):
            out[at + j] = alpha * w_tile[i * STRIP + j]


@entry(*HASHED)
def expand_f32(args: Any, tile: Any, scratch: Any) -> None:
    """y[rows, outputs] = W itself, in tiles of 128 x 64: for the places where nothing can be fused with it."""
    _expand(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*HASHED)
def expand_f16(args: Any, tile: Any, scratch: Any) -> None:
    """As expand_f32 over a float16 weight vector."""
    _expand(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*HASHED)
def expand_i8(args: Any, tile: Any, scratch: Any) -> None:
    """As expand_f32 over an int8 weight vector."""
    _expand(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
