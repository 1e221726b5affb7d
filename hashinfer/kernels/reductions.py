"""Reductions of float32 [outer, count, inner] over its middle axis, and the largest elements of it.

Along neighbouring elements, where inner is 1, sums are taken in float64; otherwise one after the other in float32, with
an error of at most count eps sum |x|. The largest and least are exact, and NaN spreads. A tile is a few outer indices.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.vectors import (
    LANES,
    add16,
    float32_array,
    int64_array,
    intp_array,
    load16,
    max16,
    mul16,
    splat16,
    store16,
)

REDUCE = ("x", "y", "outer", "count", "inner", "outer_per_tile", "kind")
X, Y, OUTER, COUNT, INNER, PER_TILE, KIND = range(len(REDUCE))
KINDS = ("sum", "mean", "max", "min")
SUM, MEAN, MAX, MIN = range(len(KINDS))
SCRATCH_BYTES = 4 * LANES

TOP = ("x", "y", "indices", "count", "inner", "k", "least")
TOP_X, TOP_Y, INDICES, TOP_COUNT, TOP_INNER, K, LEAST = range(len(TOP))
"""y [outer, k, inner], and int64 indices of the same shape or 0; least: whether the least are sought."""


@inlined
def _folded(kind: Any, a: Any, b: Any) -> Any:
    """Of `min`, a and b are negated."""
    return add16(a, b) if kind <= MEAN else max16(a, b)


@inlined
def _signed16(kind: Any, x: Any, at: Any) -> Any:
    value = load16(x, at)
    return mul16(value, splat16(np.float32(-1.0))) if kind == MIN else value


@inlined
def _larger(a: Any, b: Any) -> Any:
    """The larger of two, or NaN."""
    return b if b > a or np.isnan(b) else a


@device
def reduce_neighbours(kind: Any, x: Any, spare: Any) -> Any:
    """All of x folded. spare: float32 [16]."""
    if kind <= MEAN:
        total = 0.0
        for k in range(x.size):
            total += x[k]
        return np.float32(total / x.size if kind == MEAN else total)
    sign = np.float32(-1.0 if kind == MIN else 1.0)
    value, whole = splat16(np.float32(-np.inf)), x.size & ~(LANES - 1)
    for k in range(0, whole, LANES):
        value = max16(value, _signed16(kind, x, k))
    store16(spare, 0, value)
    top = np.float32(-np.inf)
    for k in range(LANES):
        top = _larger(top, spare[k])
    for k in range(whole, x.size):
        top = _larger(top, sign * x[k])
    return sign * top


@device
def reduce_rows(kind: Any, x: Any, count: Any, y: Any) -> None:
    """y = x [count, y.size] folded over its first axis; count is above 0."""
    inner, whole = y.size, y.size & ~(LANES - 1)
    sign = np.float32(-1.0 if kind == MIN else 1.0)
    factor = np.float32(1.0 / count) if kind == MEAN else sign
    for i in range(0, whole, LANES):
        value = _signed16(kind, x, i)
        for c in range(1, count):
            value = _folded(kind, value, _signed16(kind, x, c * inner + i))
        store16(y, i, mul16(value, splat16(factor)))
    for i in range(whole, inner):
        total = sign * x[i]
        for c in range(1, count):
            other = sign * x[c * inner + i]
            total = total + other if kind <= MEAN else _larger(total, other)
        y[i] = total * factor


@entry(*REDUCE)
def reduce_middle(args: Any, tile: Any, scratch: Any) -> None:
    """y [outer, inner] = x folded. scratch: SCRATCH_BYTES."""
    count, inner, kind = args[COUNT], args[INNER], args[KIND]
    spare = float32_array(scratch, LANES)
    for o in range(tile * args[PER_TILE], min((tile + 1) * args[PER_TILE], args[OUTER])):
        x = float32_array(args[X] + 4 * o * count * inner, count * inner)
        y = float32_array(args[Y] + 4 * o * inner, inner)
        if inner == 1:
            y[0] = reduce_neighbours(kind, x, spare)
        else:
            reduce_rows(kind, x, count, y)


@inlined
def _before(a: Any, b: Any, least: Any) -> Any:
    """Whether a stands before b: NaN is the largest."""
    if least:
        return a < b or (np.isnan(b) and not np.isnan(a))
    return a > b or (np.isnan(a) and not np.isnan(b))


@entry(*TOP)
def top_elements(args: Any, tile: Any, scratch: Any) -> None:
    """The k first elements, in order, of line `tile`, of equal ones the first. scratch: intp and float32 [k]."""
    count, inner, k, least = args[TOP_COUNT], args[TOP_INNER], args[K], args[LEAST] != 0
    o, i = tile // inner, tile % inner
    x = float32_array(args[TOP_X] + 4 * (o * count * inner + i), (count - 1) * inner + 1)
    places, values = intp_array(scratch, k), float32_array(scratch + 8 * k, k)
    found, last = 0, np.float32(0.0)
    for c in range(count):
        value = x[c * inner]
        if found == k and not _before(value, last, least):
            continue
        at = found if found < k else k - 1
        while at > 0 and _before(value, values[at - 1], least):
            values[at], places[at] = values[at - 1], places[at - 1]
            at -= 1
        values[at], places[at] = value, c
        found = min(found + 1, k)
        last = values[found - 1]
    y = float32_array(args[TOP_Y] + 4 * (o * k * inner + i), (k - 1) * inner + 1)
    for at in range(k):
        y[at * inner] = values[at]
    if args[INDICES] != 0:
        indices = int64_array(args[INDICES] + 8 * (o * k * inner + i), (k - 1) * inner + 1)
        for at in range(k):
            indices[at * inner] = places[at]
