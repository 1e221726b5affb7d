"""Convolution as a product of tiles: a tile of W, dense or hashed, is written once for 128 pixels, which are lanes.

Each output sums its inputs in order, in chunks of CHUNK: |error| <= inputs eps sum |x| |W|, element by element.
Scratch: lane places, entries [64 x 128], W tile [64 x 64], sums [64 x 128], slots and states.
"""

from typing import Any

from hashinfer.kernels.arguments import IMAGE_ROWS, INPUTS, NO_LIMIT
from hashinfer.kernels.blocks import BUCKETS, DENSE, HASHED, STRIP, W, fill, strip_at
from hashinfer.kernels.blocks import CHUNK as FILLED
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.isa import TILE_VECTORS
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.pixels import PIXELS, PLACES_BYTES, finish_pixels, read_pixels
from hashinfer.kernels.vectors import float32_array, int8_array, int32_array, load16, products4, uint16_array

BLOCK, CHUNK = 128, 64
SCRATCH_BYTES = PLACES_BYTES + 4 * (CHUNK * BLOCK + CHUNK * STRIP + STRIP * BLOCK + 2 * FILLED + PIXELS)


@inlined
def pixels_at(args: Any, tile: Any) -> Any:
    """(image, first pixel, pixels, first output, outputs) of a tile: image by image, block by block, strip by strip."""
    block, j0, nj = strip_at(args, tile)
    blocks = (args[IMAGE_ROWS] + BLOCK - 1) // BLOCK
    p0 = block % blocks * BLOCK
    return block // blocks, p0, min(BLOCK, args[IMAGE_ROWS] - p0), j0, nj


@device
def read_entries(args: Any, image: Any, p0: Any, count: Any, i0: Any, ni: Any, entries: Any, places: Any) -> None:
    """entries[ni, 128] = the patches under `count` pixels from p0 on, from entry i0 on. places: PLACES_BYTES."""
    for p in range(0, count, PIXELS):
        read_pixels(args, image, p0 + p, min(PIXELS, count - p), i0, ni, entries, p, BLOCK, places)


@device
def multiply_entries(entries: Any, count: Any, ni: Any, tile: Any, nj: Any, sums: Any) -> None:
    """sums[nj, 128] += tile[ni, 64]^T @ entries[ni, 128], at least the first `count` columns; see multiply_tile."""
    for p in range(0, count, PIXELS * TILE_VECTORS):
        for j in range(0, nj, 4):
            products4(tile, j, 1, STRIP, ni, entries, p, sums, j * BLOCK + p, BLOCK)


@device
def _pixels(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    image, p0, count, j0, nj = pixels_at(args, tile)
    at = scratch + PLACES_BYTES
    entries, w_tile = float32_array(at, CHUNK * BLOCK), float32_array(at + 4 * CHUNK * BLOCK, CHUNK * STRIP)
    at += 4 * CHUNK * (BLOCK + STRIP)
    sums, found = float32_array(at, STRIP * BLOCK), int32_array(at + 4 * STRIP * BLOCK, 2 * FILLED)
    spare = float32_array(at + 4 * (STRIP * BLOCK + 2 * FILLED), PIXELS)
    clear(sums)
    clear(w_tile)
    clear(entries)
    for i0 in range(0, args[INPUTS], CHUNK):
        ni = min(CHUNK, args[INPUTS] - i0)
        fill(args, w, i0, ni, j0, nj, w_tile, found)
        read_entries(args, image, p0, count, i0, ni, entries, scratch)
        multiply_entries(entries, count, ni, w_tile, nj, sums)
    for j in range(nj):
        for p in range(0, count, PIXELS):
            there = min(PIXELS, count - p)
            finish_pixels(args, image, p0 + p, there, j0 + j, load16(sums, j * BLOCK + p), spare)


@entry(*HASHED)
def pixel_block_f32(args: Any, tile: Any, scratch: Any) -> None:
    """128 pixels of one image by 64 outputs; tiles: see pixels_at."""
    _pixels(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*HASHED)
def pixel_block_f16(args: Any, tile: Any, scratch: Any) -> None:
    """As pixel_block_f32 over a float16 weight vector."""
    _pixels(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*HASHED)
def pixel_block_i8(args: Any, tile: Any, scratch: Any) -> None:
    """As pixel_block_f32 over an int8 weight vector."""
    _pixels(args, tile, scratch, int8_array(args[W], args[BUCKETS]))


@entry(*DENSE)
def pixel_block_dense(args: Any, tile: Any, scratch: Any) -> None:
    """As pixel_block_f32 over W itself."""
    _pixels(args, tile, scratch, float32_array(args[W], NO_LIMIT))
