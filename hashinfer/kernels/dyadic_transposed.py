"""The dyadic scheme's transpose, x @ W^T, through the Walsh-Hadamard transform.

x is scattered into v_g, spectrum . H v_g is summed over the groups and transformed once more:
|z - exact| <= (4 (log2(width) + 2) + groups + ceil(inputs / K)) eps sum over g of ||v_g||_2 ||w_g||_2.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import INPUTS, NO_LIMIT, OUTPUTS, finish, row_at, row_start
from hashinfer.kernels.blocks import dyadic_weight
from hashinfer.kernels.dyadic import (
    BUCKETS,
    CHUNK_COUNT,
    CHUNKS,
    COL_SIGNS,
    FIELDS,
    HALF,
    ROW_SIGNS,
    SEED,
    SPECTRUM,
    WIDTH,
    W,
    chunk_at,
    must_go_direct,
    stored_vector,
)
from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.hadamard import hadamard
from hashinfer.kernels.hashing import permute, sign_at
from hashinfer.kernels.isa import MOST_LANES
from hashinfer.kernels.jit import device, entry
from hashinfer.kernels.vectors import float32_array, int8_array, intp, load16, mul16, store16, uint16_array


def transposed_scratch_bytes(width: int) -> int:
    """V [width][16], u [width], a vector."""
    return 4 * (MOST_LANES * width + width + 16)


@device
def _scatter(args: Any, x: Any, scale: Any, g0: Any, lanes: Any, there: Any, v: Any) -> None:
    """v[perm(t), lane] += r(j) scale x[j], j = t G + g0 + lane."""
    width, half, seed, inputs = args[WIDTH], args[HALF], np.uint32(args[SEED]), args[INPUTS]
    groups, signs = args[BUCKETS] // width, uint16_array(args[COL_SIGNS], NO_LIMIT)
    clear(v[: width * lanes])
    for t in range((inputs + groups - 1) // groups):
        to, j0 = intp(permute(t, width, half, seed)) * lanes, t * groups + g0
        for lane in range(min(there, inputs - j0)):
            v[to + lane] += sign_at(signs, j0 + lane) * (x[j0 + lane] * scale)


@device
def _add_groups(spectrum: Any, at: Any, v: Any, width: Any, lanes: Any, u: Any, spare: Any) -> None:
    """u[k] += sum over the lanes of spectrum . v, both of one chunk."""
    vectors, places = width * lanes // 16, 16 // lanes
    for h in range(vectors):
        store16(spare, 0, mul16(load16(spectrum, at + 16 * stored_vector(h, vectors)), load16(v, 16 * h)))
        for p in range(places):
            total = np.float32(0.0)
            for lane in range(lanes):
                total += spare[p * lanes + lane]
            u[h * places + p] += total
    for k in range(16 * vectors, width * lanes):
        u[k // lanes] += spectrum[at + k] * v[k]


@device
def _direct(args: Any, tile: Any, x: Any, scale: Any, w: Any) -> None:
    width, half, seed, start = args[WIDTH], args[HALF], np.uint32(args[SEED]), row_start(args, tile)
    for i in range(args[OUTPUTS]):
        total = np.float32(0.0)
        for j in range(args[INPUTS]):
            if x[j] != np.float32(0.0):
                total += x[j] * scale * dyadic_weight(w, args[BUCKETS], seed, width, half, i, j)
        finish(args, start, tile, i, total)


@device
def _transposed(args: Any, tile: Any, scratch: Any, w: Any) -> None:
    """x @ W^T for row `tile`: inputs are the columns of W, outputs its rows."""
    width = args[WIDTH]
    groups = args[BUCKETS] // width
    x, scale = row_at(args, tile)
    if must_go_direct(x, x.size):
        _direct(args, tile, x, scale, w)
        return
    v, u = float32_array(scratch, width * MOST_LANES), float32_array(scratch + 4 * width * MOST_LANES, width)
    spare = float32_array(scratch + 4 * width * (MOST_LANES + 1), 16)
    spectrum, signs = float32_array(args[SPECTRUM], NO_LIMIT), uint16_array(args[ROW_SIGNS], NO_LIMIT)
    clear(u)
    for chunk in range(args[CHUNK_COUNT]):
        g0, lanes, at, _ = chunk_at(args[CHUNKS], chunk)
        _scatter(args, x, scale, g0, lanes, min(lanes, groups - g0), v)
        hadamard(v, width, lanes)
        _add_groups(spectrum, at, v, width, lanes, u, spare)
    hadamard(u, width, 1)
    start = row_start(args, tile)
    for i in range(args[OUTPUTS]):
        finish(args, start, tile, i, sign_at(signs, i) * u[i & (width - 1)])


@entry(*FIELDS)
def dyadic_transposed_f32(args: Any, tile: Any, scratch: Any) -> None:
    """One row of x @ W^T."""
    _transposed(args, tile, scratch, float32_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_transposed_f16(args: Any, tile: Any, scratch: Any) -> None:
    _transposed(args, tile, scratch, uint16_array(args[W], args[BUCKETS]))


@entry(*FIELDS)
def dyadic_transposed_i8(args: Any, tile: Any, scratch: Any) -> None:
    _transposed(args, tile, scratch, int8_array(args[W], args[BUCKETS]))
