"""What training in PyTorch calls on the CPU: cell tables of the xxh32 scheme, dyadic products and their gradients.

Plain functions of int64 arguments (addresses and sizes), one thread each. The dyadic products hold one vector of
`width` numbers at a time: neither W nor the transformed outputs of a whole batch are ever written down.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.elementwise import clear
from hashinfer.kernels.hadamard import hadamard
from hashinfer.kernels.hashing import signed_slot, xxh32_finish, xxh32_prefix
from hashinfer.kernels.jit import compiled, device
from hashinfer.kernels.vectors import float32_array, int32_array, int64_array

_ONE = np.uint32(1)


@device
def signed_bucket(slot: Any, buckets: Any) -> Any:
    """The slot's first bucket, plus `buckets` where its sign is -1: below 2^31."""
    return np.int32(np.uint32(slot >> _ONE)) + np.int32(np.uint32(slot & _ONE)) * np.int32(buckets)


@compiled
def xxh32_cells(ids: Any, rows: Any, cols: Any, buckets: Any, seed: Any, block: Any, out: Any) -> None:
    """out[r, j], int32 [rows, cols] = bucket of W[ids[r], j], plus K where its sign is -1. ids: int64 [rows]."""
    row_of, cells = int64_array(ids, rows), int32_array(out, rows * cols)
    slots = 2 * (buckets - block + 1)
    for r in range(rows):
        prefix, at = xxh32_prefix(row_of[r], seed), r * cols
        if block == 1:
            for j in range(cols):
                cells[at + j] = signed_bucket(signed_slot(xxh32_finish(prefix, np.uint32(j)), slots), buckets)
        else:
            for start in range(0, cols, block):
                first = signed_bucket(signed_slot(xxh32_finish(prefix, start // block), slots), buckets)
                for t in range(min(block, cols - start)):
                    cells[at + start + t] = first + np.int32(t)


@compiled
def hadamard_rows(v: Any, rows: Any, width: Any) -> None:
    """v[rows, width], float32, each row transformed in place: v <- H v, unnormalised."""
    for r in range(rows):
        hadamard(float32_array(v + 4 * r * width, width), width, 1)


@compiled
def dyadic_products(
    spectrum: Any, u: Any, batch: Any, width: Any, groups: Any, cols: Any, perm: Any, scale: Any, y: Any, scratch: Any
) -> None:
    """y[b, j] = scale[j] (H (spectrum[g] . u[b]))[perm[t]], g = j mod G, t = j div G.

    spectrum: H w, float32 [groups, width]; u: H u, [batch, width]; perm: int64 [ceil(cols / groups)]; scale: r(j) /
    width, [cols]; y: [batch, cols]; scratch: [width]. Error: norm-wise, log2(width) eps ||u|| ||w_g|| an output.
    """
    s, x, out = (
        float32_array(spectrum, groups * width),
        float32_array(u, batch * width),
        float32_array(y, batch * cols),
    )
    places, factor, v = int64_array(perm, -(-cols // groups)), float32_array(scale, cols), float32_array(scratch, width)
    for b in range(batch):
        for g in range(groups):
            for k in range(width):
                v[k] = s[g * width + k] * x[b * width + k]
            hadamard(v, width, 1)
            for t in range((cols - g + groups - 1) // groups):
                j = t * groups + g
                out[b * cols + j] = v[places[t]] * factor[j]


@compiled
def dyadic_gradients(
    spectrum: Any,
    u: Any,
    dy: Any,
    batch: Any,
    width: Any,
    groups: Any,
    cols: Any,
    perm: Any,
    scale: Any,
    d_spectrum: Any,
    d_u: Any,
    scratch: Any,
) -> None:
    """d_spectrum += and d_u += the gradients of sum(y . dy), y as `dyadic_products` has it; shapes as there."""
    s, x, slope = (
        float32_array(spectrum, groups * width),
        float32_array(u, batch * width),
        float32_array(dy, batch * cols),
    )
    ds, dx = float32_array(d_spectrum, groups * width), float32_array(d_u, batch * width)
    places, factor, v = int64_array(perm, -(-cols // groups)), float32_array(scale, cols), float32_array(scratch, width)
    for b in range(batch):
        for g in range(groups):
            clear(v)
            for t in range((cols - g + groups - 1) // groups):
                j = t * groups + g
                v[places[t]] += slope[b * cols + j] * factor[j]
            hadamard(v, width, 1)
            for k in range(width):
                ds[g * width + k] += v[k] * x[b * width + k]
            for k in range(width):
                dx[b * width + k] += v[k] * s[g * width + k]
