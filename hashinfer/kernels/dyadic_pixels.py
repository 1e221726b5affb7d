"""The dyadic scheme for convolutions: sixteen neighbouring output pixels are the lanes of one transform.

As hashinfer.kernels.dyadic, with its error bound; each group of the spectrum is one vector that all pixels share.
Pixels that must go directly are computed one by one afterwards, whatever number of their inputs is zero.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import IMAGE_ROWS, INPUTS, NO_LIMIT, OUTPUTS
from hashinfer.kernels.dyadic import (
    BUCKETS,
    CHUNK_COUNT,
    CHUNKS,
    COL_SIGNS,
    FIELDS,
    PLACES,
    ROW_SIGNS,
    SPECTRUM,
    TAIL,
    WIDTH,
    W,
    chunk_at,
    direct_row,
    finish_row,
    out_of_range,
    raw_count,
    raw_floats,
    stored_vector,
)
from hashinfer.kernels.hadamard import RADIX_BITS, hadamard, log2_of, passes, signed_sum
from hashinfer.kernels.hashing import sign_at
from hashinfer.kernels.isa import RADIX
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.pixels import PIXELS, PLACES_BYTES, finish_pixels, read_pixels
from hashinfer.kernels.rows import read_rows
from hashinfer.kernels.vectors import (
    float32_array,
    fma16,
    int8_array,
    int32_array,
    intp,
    largest16,
    load16,
    modulated_lanes16,
    mul16,
    splat16,
    store16,
    uint16_array,
)

CHUNK = 64
"""Patch entries that are read at once."""


@inlined
def _vector_floats(width: Any) -> Any:
    """Floats of V: RADIX blocks of one vector for each place, a vector apart."""
    return PIXELS * (width + RADIX)


def pixel_scratch_bytes(width: int, inputs: int, outputs: int, groups: int) -> int:
    """Lane places, U [width][16], V, one group of the spectrum and a vector, entries; outputs and inputs of one row."""
    own = raw_floats(outputs, groups) + inputs
    return PLACES_BYTES + 4 * (PIXELS * width + PIXELS * (width + RADIX) + width + 16 + CHUNK * PIXELS + own)


@device
def _fold(args: Any, image: Any, p0: Any, count: Any, v: Any, entries: Any, scratch: Any) -> None:
    """v[k, c] = sum of s(i) x[i] over i = k (mod width) of the patch under pixel p0 + c."""
    width, inputs, signs = args[WIDTH], args[INPUTS], uint16_array(args[ROW_SIGNS], NO_LIMIT)
    for k in range(width):
        store16(v, 16 * k, splat16(np.float32(0.0)))
    for i0 in range(0, inputs, CHUNK):
        length = min(CHUNK, inputs - i0)
        read_pixels(args, image, p0, count, i0, length, entries, 0, PIXELS, scratch)
        for i in range(length):
            at = 16 * ((i0 + i) & (width - 1))
            store16(v, at, fma16(splat16(sign_at(signs, i0 + i)), load16(entries, 16 * i), load16(v, at)))


@device
def _one_group(spectrum: Any, at: Any, lanes: Any, lane: Any, width: Any, out: Any) -> None:
    """out[k] = H w_g / width, natural order, for one lane of the chunk that begins at `at`."""
    vectors = width * lanes // 16
    if vectors < RADIX:
        for k in range(width):
            out[k] = spectrum[at + k * lanes + lane]
        return
    block, places = vectors // RADIX, 16 // lanes
    for r in range(RADIX):
        for q in range(block):
            source, to = at + 16 * (q * RADIX + r), (r * block + q) * places
            if lanes == 1:
                store16(out, to, load16(spectrum, source))
            else:
                for p in range(places):
                    out[to + p] = spectrum[source + p * lanes + lane]


@device
def _group(args: Any, g: Any, u: Any, v: Any, one: Any, image: Any, p0: Any, count: Any) -> None:
    """Outputs t G + g of the pixels, from U in the order of the first pass and one group of the spectrum."""
    width = args[WIDTH]
    groups, signs = args[BUCKETS] // width, uint16_array(args[COL_SIGNS], NO_LIMIT)
    outputs = (args[OUTPUTS] - g + groups - 1) // groups
    places, spare = int32_array(args[PLACES], outputs), one[width : width + 16]
    shift, tail = log2_of(width), 1
    if width < RADIX:
        for k in range(width):
            store16(v, 16 * k, mul16(load16(u, 16 * k), splat16(one[k])))
        hadamard(v, width, PIXELS)
    else:
        shift, tail = shift - RADIX_BITS, args[TAIL]
        block, tail_bits = 1 << shift, log2_of(tail)
        for q in range(block):
            modulated_lanes16(u, q * RADIX * 16, one, q, block, v, q * 16, (block + 1) * 16)
        if shift > tail_bits:
            for r in range(RADIX):
                passes(v, r * (block + 1), shift, tail_bits)
    for t in range(outputs):
        h, j = intp(places[t]), t * groups + g
        value = signed_sum(v, 16 * ((h & -tail) + (h >> shift)), tail, h & (tail - 1))
        finish_pixels(args, image, p0, count, j, mul16(value, splat16(sign_at(signs, j))), spare)


@device
def _pixels(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    width, pixels = args[WIDTH], args[IMAGE_ROWS]
    tiles, groups = (pixels + PIXELS - 1) // PIXELS, args[BUCKETS] // width
    image, p0 = tile // tiles, tile % tiles * PIXELS
    count, at = min(PIXELS, pixels - p0), scratch + PLACES_BYTES
    u, v = float32_array(at, 16 * width), float32_array(at + 64 * width, _vector_floats(width))
    at += 64 * width + 4 * _vector_floats(width)
    one, entries = float32_array(at, width + 16), float32_array(at + 4 * (width + 16), CHUNK * PIXELS)
    at += 4 * (width + 16 + CHUNK * PIXELS)
    _fold(args, image, p0, count, v, entries, scratch)
    largest = splat16(np.float32(0.0))
    for k in range(width):
        largest = largest16(largest, load16(v, 16 * k))
    store16(one, width, largest)
    direct, bits = 0, one[width : width + 16].view(np.uint32)
    for c in range(count):
        if out_of_range(bits[c]):
            direct |= 1 << c
    hadamard(v, width, PIXELS)
    for k in range(width):
        store16(u, 16 * stored_vector(k, width), load16(v, 16 * k))
    spectrum = float32_array(args[SPECTRUM], NO_LIMIT)
    for chunk in range(args[CHUNK_COUNT]):
        g0, lanes, start, _ = chunk_at(args[CHUNKS], chunk)
        for lane in range(min(lanes, groups - g0)):
            _one_group(spectrum, start, lanes, lane, width, one)
            _group(args, g0 + lane, u, v, one, image, p0, count)
    if direct != 0:
        raw, x = float32_array(at, raw_count(args)), float32_array(at + 4 * raw_count(args), args[INPUTS])
        for c in range(count):
            if direct >> c & 1 == 1:
                r = image * pixels + p0 + c
                read_rows(args, r, 1, 0, args[INPUTS], x)
                direct_row(args, x, np.float32(1.0), w, 0, groups, v, raw)
                finish_row(args, r, raw)


@entry(*FIELDS)
def dyadic_pixels_f32(args: Any, tile: Any, scratch: Any) -> None:
    """Sixteen pixels of one image, all outputs: tile = image * ceil(pixels / 16) + sixteen."""
    _pixels(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_pixels_f16(args: Any, tile: Any, scratch: Any) -> None:
    _pixels(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_pixels_i8(args: Any, tile: Any, scratch: Any) -> None:
    _pixels(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
