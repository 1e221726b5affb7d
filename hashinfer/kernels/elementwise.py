"""Element by element: conversions to and from float32, arithmetic of two broadcast float32 operands.

Each element is rounded once, as NumPy's ufuncs do.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.hashing import weight
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.vectors import (
    float32_array,
    float64_array,
    int8_array,
    int32_array,
    int64_array,
    uint8_array,
    uint16_array,
)

TILE = 16384
"""Elements of one tile of a flat kernel, and of rows that are taken together."""

FLAT = ("x", "kind", "count", "y")
X, KIND, COUNT, Y = range(len(FLAT))

SOURCES = ("uint8", "int8", "uint16", "int32", "int64", "float64", "float16")
"""dtypes that convert to float32, by `kind`."""

OPERATIONS = ("Add", "Sub", "Mul", "Div")
AXES = 4
BROADCAST = ("a", "b", "y", "operation", *(f"{name}{k}" for name in "nab" for k in range(AXES)), "pieces")
A, B, OUT, OPERATION, SHAPE, A_STRIDES, B_STRIDES, PIECES = 0, 1, 2, 3, 4, 8, 12, 16
"""n0 ... n3: the output's shape; a0 ..., b0 ...: strides in elements, 0 along axes that are repeated, 0 or 1 along the
last; pieces: in one tile, each a row of the last axis, or TILE elements of it."""


@inlined
def clear(values: Any) -> None:
    """values = 0."""
    for k in range(values.size):
        values[k] = 0


@device
def convert(x: Any, y: Any) -> None:
    """y = x, element by element."""
    for k in range(y.size):
        y[k] = np.float32(x[k])


@entry(*FLAT)
def to_float32(args: Any, tile: Any, scratch: Any) -> None:
    """y = float32(x) over `count` elements, TILE at a time."""
    first, kind = tile * TILE, args[KIND]
    count = min(TILE, args[COUNT] - first)
    y = float32_array(args[Y] + 4 * first, count)
    if kind == 0:
        convert(uint8_array(args[X] + first, count), y)
    elif kind == 1:
        convert(int8_array(args[X] + first, count), y)
    elif kind == 2:
        convert(uint16_array(args[X] + 2 * first, count), y)
    elif kind == 3:
        convert(int32_array(args[X] + 4 * first, count), y)
    elif kind == 4:
        convert(int64_array(args[X] + 8 * first, count), y)
    elif kind == 5:
        convert(float64_array(args[X] + 8 * first, count), y)
    else:
        halves = uint16_array(args[X] + 2 * first, count)
        for k in range(count):
            y[k] = weight(halves, k)


@inlined
def half_of(bits: Any) -> Any:
    """float16's bits of a float32's (both as int32), rounded to the nearest, halves to even; NaN stays one."""
    magnitude = bits & np.int32(0x7FFFFFFF)
    # A number in float16's normal range: the exponent is shifted by 112, 13 bits are rounded away.
    rounder = np.int32(0xFFF) + (magnitude >> np.int32(13) & np.int32(1))
    normal = (magnitude + rounder - np.int32(112 << 23)) >> np.int32(13)
    # Below it: a multiple of 2^-24.
    mantissa, shift = magnitude & np.int32(0x7FFFFF) | np.int32(0x800000), np.int32(126) - (magnitude >> np.int32(23))
    shift = shift if shift < np.int32(25) else np.int32(25)
    shift = shift if shift > np.int32(1) else np.int32(1)
    small, rest = mantissa >> shift, mantissa & ((np.int32(1) << shift) - np.int32(1))
    half = np.int32(1) << (shift - np.int32(1))
    small += np.int32(1) if rest > half or (rest == half and small & np.int32(1) != 0) else np.int32(0)
    value = small if magnitude < np.int32(113 << 23) else normal
    value = value if value < np.int32(0x7C00) else np.int32(0x7C00)
    value = value if magnitude <= np.int32(255 << 23) else np.int32(0x7E00)
    return np.uint16(value | (bits >> np.int32(16) & np.int32(0x8000)))


@entry(*FLAT)
def to_float16(args: Any, tile: Any, scratch: Any) -> None:
    """y = float16(x) over `count` float32, TILE at a time."""
    first = tile * TILE
    count = min(TILE, args[COUNT] - first)
    x, y = int32_array(args[X] + 4 * first, count), uint16_array(args[Y] + 2 * first, count)
    for k in range(count):
        y[k] = half_of(x[k])


@inlined
def apply(operation: Any, a: Any, b: Any) -> Any:
    """One of OPERATIONS on two float32."""
    if operation == 0:
        return a + b
    if operation == 1:
        return a - b
    if operation == 2:
        return a * b
    return a / b


@device
def _pairs(operation: Any, a: Any, b: Any, y: Any) -> None:
    for k in range(y.size):
        y[k] = apply(operation, a[k], b[k])


@device
def _with_one(operation: Any, a: Any, value: Any, y: Any) -> None:
    for k in range(y.size):
        y[k] = apply(operation, a[k], value)


@device
def _one_with(operation: Any, value: Any, b: Any, y: Any) -> None:
    for k in range(y.size):
        y[k] = apply(operation, value, b[k])


@entry(*BROADCAST)
def arithmetic(args: Any, tile: Any, scratch: Any) -> None:
    """y = a (operation) b over four broadcast axes."""
    n1, n2, n3, operation = args[SHAPE + 1], args[SHAPE + 2], args[SHAPE + 3], args[OPERATION]
    parts = (n3 + TILE - 1) // TILE
    for piece in range(tile * args[PIECES], min((tile + 1) * args[PIECES], args[SHAPE] * n1 * n2 * parts)):
        row, first = piece // parts, piece % parts * TILE
        p2, rest = row % n2, row // n2
        p1, p0 = rest % n1, rest // n1
        i = p0 * args[A_STRIDES] + p1 * args[A_STRIDES + 1] + p2 * args[A_STRIDES + 2] + first * args[A_STRIDES + 3]
        j = p0 * args[B_STRIDES] + p1 * args[B_STRIDES + 1] + p2 * args[B_STRIDES + 2] + first * args[B_STRIDES + 3]
        count = min(n3 - first, TILE)
        a, b = float32_array(args[A] + 4 * i, count), float32_array(args[B] + 4 * j, count)
        y = float32_array(args[OUT] + 4 * (row * n3 + first), count)
        if args[A_STRIDES + 3] == 0:
            _one_with(operation, a[0], b, y)
        elif args[B_STRIDES + 3] == 0:
            _with_one(operation, a, b[0], y)
        else:
            _pairs(operation, a, b, y)
