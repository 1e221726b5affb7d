"""Products of 8-bit integers less their zero points, exact: sums are int32 and wrap around.

Bytes are read as uint8. Of int8, numbers and zero points alike have their top bit flipped: differences stay what they
are. Left operands come as the differences themselves, from kernels of their own, so that padding is 0. Two int16
differences of neighbouring inputs are a word, and products of two words' halves are added at once, in tiles like those
of the float products. Single rows are summed in float32, which is exact for the products of CHUNK inputs
(128 * 255^2 < 2^24). Scratch: tiles of words, sums; for pixels, patches.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import (
    IMAGE_ROWS,
    INPUTS,
    NO_LIMIT,
    PRODUCT,
    X_ROW_STRIDE,
    Y_COL_STRIDE,
    X,
    Y,
    row_at,
    row_start,
)
from hashinfer.kernels.blocks import (
    ARGUMENT_BYTES,
    CHUNK,
    ROW_BLOCK,
    STRIP,
    block_at,
    multiply_tile,
    of_matrix,
    store64,
    strip_at,
)
from hashinfer.kernels.elementwise import TILE, clear
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.pixel_blocks import BLOCK as PIXELS
from hashinfer.kernels.pixel_blocks import CHUNK as PIXEL_CHUNK
from hashinfer.kernels.pixel_blocks import multiply_entries, pixels_at, read_entries
from hashinfer.kernels.pixels import PLACES_BYTES
from hashinfer.kernels.vectors import (
    byte_pairs16,
    byte_run16,
    byte_words16,
    bytes16,
    float32_array,
    fma16,
    int32_array,
    intp_array,
    intp_at,
    load16,
    pair16,
    ramp16,
    splat16,
    store16,
    transpose16,
    uint8_array,
    uint16_array,
)

FIRST = len(PRODUCT)
INTEGER = (*PRODUCT, "w", "w_row_stride", "w_col_stride", "flip", "zero", "zeros", "offsets")
W, W_ROW_STRIDE, W_COL_STRIDE, FLIP, ZERO, ZEROS, OFFSETS = range(FIRST, len(INTEGER))
"""w: bytes; flip: 128 where they are int8, else 0; zero: of W, `zeros` of them: none, one, or one for each output.
offsets: intp [batches, 3], the elements to add to x, w and y for each matrix of a batch. y: int32."""
CENTRE = ("x", "y", "count", "flip", "zero", "zeros", "run", "pitch")
"""zeros: none, or how many of them take turns, each for a run of elements; pitch: int16 from run to run."""

SPARE = 256
_TILE, _SUMS = CHUNK // 2 * STRIP, ROW_BLOCK * STRIP
SCRATCH_BYTES = ARGUMENT_BYTES + 4 * (_TILE + _SUMS + SPARE)
ROW_SCRATCH_BYTES = 8 * STRIP
_ENTRIES, _PIXEL_TILE, _PIXEL_SUMS = PIXEL_CHUNK * PIXELS, PIXEL_CHUNK // 2 * STRIP, STRIP * PIXELS
PIXEL_SCRATCH_BYTES = PLACES_BYTES + 4 * (_ENTRIES + _ENTRIES // 2 + _PIXEL_TILE + _PIXEL_SUMS + SPARE)


@inlined
def zero_at(address: Any, index: Any, flip: Any) -> Any:
    """A zero point as int32, flipped like its numbers; 0 where there is none."""
    flipped = uint8_array(address, NO_LIMIT)[index] ^ flip if address != 0 else flip
    return np.int32(flipped)


@entry(*CENTRE)
def centre(args: Any, tile: Any, scratch: Any) -> None:
    """y = float32(x - zero) over `count` bytes, TILE at a time."""
    first, flip, run = tile * TILE, np.uint8(args[3]), args[6]
    last = min(first + TILE, args[2])
    x, y = uint8_array(args[0], args[2]), float32_array(args[1], args[2])
    while first < last:
        at = first // run
        zero, end = zero_at(args[4], at % max(args[5], 1), flip), min(last, (at + 1) * run)
        for k in range(first, end):
            y[k] = np.float32(np.int32(x[k] ^ flip) - zero)
        first = end


@entry(*CENTRE)
def centre_rows(args: Any, tile: Any, scratch: Any) -> None:
    """y = int16(x - zero) of one run, its end filled with zeros."""
    flip, run, pitch = np.uint8(args[3]), args[6], args[7]
    x, y = uint8_array(args[0] + tile * run, run), uint16_array(args[1] + 2 * tile * pitch, pitch)
    zero = zero_at(args[4], tile % max(args[5], 1), flip)
    for k in range(run):
        y[k] = np.uint16((np.int32(x[k] ^ flip) - zero) & np.int32(0xFFFF))
    for k in range(run, pitch):
        y[k] = np.uint16(0)


@inlined
def _word(w: Any, at: Any, step: Any, there: Any, flip: Any, zero: Any) -> Any:
    """Two weights less their zero point as a word; there: whether there is a second one."""
    low = np.int32(w[at] ^ flip) - zero
    high = np.int32(w[at + step] ^ flip) - zero if there else np.int32(0)
    return np.int32(np.int32(low & np.int32(0xFFFF)) | np.int32(high << np.int32(16)))


@device
def fill_words(args: Any, i0: Any, ni: Any, j0: Any, nj: Any, tile: Any, spare: Any) -> None:
    """tile[i, j] = the word of (W - zero)[i0 + 2 i, j0 + j] and [i0 + 2 i + 1, j0 + j], i < ni / 2 rounded up, j < nj.

    tile: address of int32 [., 64], of no account beyond nj; spare: float32 [16 x 16].
    """
    rs, cs, flip = args[W_ROW_STRIDE], args[W_COL_STRIDE], np.uint8(args[FLIP])
    several, zeros, w = args[ZEROS] > 1, uint8_array(args[ZERO], NO_LIMIT), uint8_array(args[W], NO_LIMIT)
    vectors, words = float32_array(tile, _TILE), int32_array(tile, _TILE)
    across, down = nj & ~15 if cs == 1 or rs == 1 else 0, ni // 2 if cs == 1 else ni // 2 & ~15
    one = zero_at(args[ZERO], 0, flip)
    for j in range(0, across, 16):
        if cs == 1:
            less = byte_words16(zeros, j0 + j, flip) if several else ramp16(np.uint32(one), np.uint32(0))
            for i in range(down):
                source = (i0 + 2 * i) * rs + j0 + j
                store16(vectors, i * STRIP + j, byte_pairs16(w, source, source + rs, flip, less))
            continue
        for i in range(0, down, 16):
            for k in range(16):
                zero = zero_at(args[ZERO], j0 + j + k, flip) if several else one
                found = byte_run16(w, i0 + 2 * i + (j0 + j + k) * cs, flip, np.uint16(zero))
                store16(spare, 16 * k, found)
            transpose16(spare, 0, 16, vectors, i * STRIP + j, STRIP)
    for j in range(nj):
        zero = zero_at(args[ZERO], j0 + j, flip) if several else one
        for i in range(down if j < across else 0, (ni + 1) // 2):
            at = (i0 + 2 * i) * rs + (j0 + j) * cs
            words[i * STRIP + j] = _word(w, at, rs, 2 * i + 1 < ni, flip, zero)


@device
def pack_tile(values: Any, ni: Any, width: Any, words: Any) -> None:
    """words[i, width] = rows 2 i and 2 i + 1 of values [ni, width], a last row alone with zeros."""
    for at in range(0, ni // 2 * width, width):
        for j in range(0, width, 16):
            store16(words, at + j, pair16(load16(values, 2 * at + j), load16(values, 2 * at + width + j)))
    if ni % 2:
        for j in range(0, width, 16):
            last = load16(values, (ni - 1) * width + j)
            store16(words, ni // 2 * width + j, pair16(last, splat16(np.float32(0.0))))


@device
def _block(args: Any, tile: Any, scratch: Any) -> None:
    r0, count, j0, nj = block_at(args, tile, ROW_BLOCK)
    tile_at, totals = scratch, scratch + 4 * _TILE
    spare, sums = float32_array(totals + 4 * _SUMS, SPARE), float32_array(totals, count * STRIP)
    clear(int32_array(totals, count * STRIP))
    if nj < STRIP:
        clear(int32_array(tile_at, _TILE))
    pitch = args[X_ROW_STRIDE]
    rows = int32_array(args[X] + 4 * r0 * pitch, count * pitch)
    for i0 in range(0, args[INPUTS], CHUNK):
        ni = min(CHUNK, args[INPUTS] - i0)
        fill_words(args, i0, ni, j0, nj, tile_at, spare)
        pairs, tile_words = (ni + 1) // 2, int32_array(tile_at, _TILE)
        multiply_tile(rows[i0 // 2 :], pitch, count, pairs, tile_words, nj, sums)
    found, y = int32_array(totals, count * STRIP), int32_array(args[Y], NO_LIMIT)
    for r in range(count):
        start = row_start(args, r0 + r) + j0
        for j in range(nj):
            y[start + j] = found[r * STRIP + j]


@entry(*INTEGER)
def integer_block(args: Any, tile: Any, scratch: Any) -> None:
    """128 rows by 64 outputs; tiles are numbered matrix by matrix of the batch, then row block by row block."""
    within = of_matrix(args, intp_array(scratch, len(INTEGER)), OFFSETS, 1, tile)
    _block(intp_at(scratch), within, scratch + ARGUMENT_BYTES)


@entry(*INTEGER)
def integer_row(args: Any, tile: Any, scratch: Any) -> None:
    """A strip of 64 outputs of one row, W [inputs, outputs] read where it lies. For few rows."""
    r, j0, nj = strip_at(args, tile)
    ni, ws, flip = args[INPUTS], args[W_ROW_STRIDE], np.uint8(args[FLIP])
    (x, _), w = row_at(args, r), uint8_array(args[W], NO_LIMIT)
    sums, totals = float32_array(scratch, STRIP), int32_array(scratch + 4 * STRIP, STRIP)
    clear(totals)
    if nj == STRIP:
        for i0 in range(0, ni, CHUNK):
            a0 = a1 = a2 = a3 = splat16(np.float32(0.0))
            for i in range(i0, min(i0 + CHUNK, ni)):
                xi, at = splat16(x[i]), i * ws + j0
                a0 = fma16(xi, bytes16(w, at, flip), a0)
                a1 = fma16(xi, bytes16(w, at + 16, flip), a1)
                a2 = fma16(xi, bytes16(w, at + 32, flip), a2)
                a3 = fma16(xi, bytes16(w, at + 48, flip), a3)
            store64(sums, 0, a0, a1, a2, a3)
            for j in range(STRIP):
                totals[j] += np.int32(sums[j])
    else:
        for i in range(ni):
            xi, at = np.int32(x[i]), i * ws + j0
            for j in range(nj):
                totals[j] += xi * np.int32(w[at + j] ^ flip)
    whole = np.int32(0)
    for i in range(ni):
        whole += np.int32(x[i])
    y, start = int32_array(args[Y], NO_LIMIT), row_start(args, r) + j0
    for j in range(nj):
        zero = zero_at(args[ZERO], j0 + j if args[ZEROS] > 1 else 0, flip)
        y[start + j] = totals[j] - whole * zero


@entry(*INTEGER)
def integer_pixels(args: Any, tile: Any, scratch: Any) -> None:
    """Convolution: 128 pixels of one image by 64 outputs; tiles: see pixels_at."""
    image, p0, count, j0, nj = pixels_at(args, tile)
    at = scratch + PLACES_BYTES
    entries, entry_words = float32_array(at, _ENTRIES), float32_array(at + 4 * _ENTRIES, _ENTRIES // 2)
    tile_at = at + 6 * _ENTRIES
    totals_at = tile_at + 4 * _PIXEL_TILE
    totals, spare = int32_array(totals_at, _PIXEL_SUMS), float32_array(totals_at + 4 * _PIXEL_SUMS, SPARE)
    clear(totals)
    clear(int32_array(tile_at, _PIXEL_TILE))
    clear(entries)
    for i0 in range(0, args[INPUTS], PIXEL_CHUNK):
        ni = min(PIXEL_CHUNK, args[INPUTS] - i0)
        fill_words(args, i0, ni, j0, nj, tile_at, spare)
        read_entries(args, image, p0, count, i0, ni, entries, scratch)
        pack_tile(entries, ni, PIXELS, entry_words)
        tile_words, sums = int32_array(tile_at, _PIXEL_TILE), float32_array(totals_at, _PIXEL_SUMS)
        multiply_entries(entry_words, count, (ni + 1) // 2, tile_words, nj, sums)
    y = int32_array(args[Y], NO_LIMIT)
    start = row_start(args, image * args[IMAGE_ROWS] + p0) + j0 * args[Y_COL_STRIDE]
    for j in range(nj):
        to = start + j * args[Y_COL_STRIDE]
        for p in range(count):
            y[to + p] = totals[j * PIXELS + p]
