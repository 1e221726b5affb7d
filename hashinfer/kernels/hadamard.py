"""The Walsh-Hadamard transform over explicit vectors: in place, and pruned to the outputs that exist.

Unnormalised, in natural (Hadamard) order: V <- H V, H[k, l] = (-1)^popcount(k & l). Its error is norm-wise:
at most log2(width) eps ||v||_2 a vector, in the 2-norm scaled by sqrt(width).

`v[width, lanes]` is seen as width * lanes / 16 vectors of sixteen floats. One pass of radix R does log2(R) stages.
"""

from typing import Any

from hashinfer.kernels.hashing import sign_of
from hashinfer.kernels.isa import RADIX
from hashinfer.kernels.jit import device, inlined
from hashinfer.kernels.vectors import (
    butterflies2,
    butterflies4,
    butterflies8,
    butterflies16,
    fma16,
    load16,
    signed_sum2,
    signed_sum4,
    signed_sum8,
    signed_sum16,
    splat16,
    store16,
    swap1,
    swap2,
    swap4,
    swap8,
)

BLOCK_BITS = 8
"""log2 of the vectors that stay in a first-level cache between passes: 16 KiB."""
RADIX_BITS = RADIX.bit_length() - 1


@device
def _within_vectors(v: Any, size: Any, lanes: Any) -> None:
    """Butterflies at distances lanes, 2 lanes, ... 8 floats, inside each vector of sixteen."""
    for at in range(0, size, 16):
        x = load16(v, at)
        if lanes <= 1:
            x = swap1(x)
        if lanes <= 2:
            x = swap2(x)
        if lanes <= 4:
            x = swap4(x)
        if lanes <= 8:
            x = swap8(x)
        store16(v, at, x)


@inlined
def one_pass(v: Any, first: Any, last: Any, bits: Any, radix_bits: Any) -> None:
    """The `radix_bits` widest stages of each block of 2^bits vectors in v[first : last, 16]."""
    step, start = 1 << (bits - radix_bits), first
    # A range of an unknown step divides.
    while start < last:
        if RADIX_BITS >= 4 and radix_bits == 4:
            for q in range(start, start + step):
                butterflies16(v, q * 16, step * 16)
        elif RADIX_BITS >= 3 and radix_bits == 3:
            for q in range(start, start + step):
                butterflies8(v, q * 16, step * 16)
        elif radix_bits == 2:
            for q in range(start, start + step):
                butterflies4(v, q * 16, step * 16)
        else:
            for q in range(start, start + step):
                butterflies2(v, q * 16, step * 16)
        start += 1 << bits


@device
def passes(v: Any, first: Any, bits: Any, tail_bits: Any) -> None:
    """The stages over the 2^bits vectors v[first :, 16], down to blocks of 2^tail_bits."""
    last = first + (1 << bits)
    while RADIX_BITS >= 3 and bits > BLOCK_BITS and bits - tail_bits >= 3:
        # Radix 16 at strides of a power of two would meet in too few sets of the cache.
        one_pass(v, first, last, bits, 3)
        bits -= 3
    while first < last:
        left = bits
        while left > tail_bits:
            radix_bits = min(RADIX_BITS, left - tail_bits)
            one_pass(v, first, first + (1 << bits), left, radix_bits)
            left -= radix_bits
        first += 1 << bits


@device
def _scalar(v: Any, size: Any, lanes: Any) -> None:
    h = lanes
    while h < size:
        for block in range(0, size, 2 * h):
            for q in range(block, block + h):
                a, b = v[q], v[q + h]
                v[q], v[q + h] = a + b, a - b
        h *= 2


@inlined
def log2_of(power: Any) -> Any:
    """The exponent of a power of two."""
    bits = 0
    while power >> (bits + 1) != 0:
        bits += 1
    return bits


@device
def hadamard(v: Any, width: Any, lanes: Any) -> None:
    """Transform v[width, lanes] (float32, flat) along its first axis, in place.

    width: a power of two; lanes: 1, 2, 4, 8 or 16.
    """
    size = width * lanes
    if size < 16:
        _scalar(v, size, lanes)
        return
    if lanes < 16:
        _within_vectors(v, size, lanes)
    passes(v, 0, log2_of(size >> 4), 0)


@inlined
def parity(k: Any) -> Any:
    """1 where an odd number of the bits of k, an int32 at most, is set, else 0."""
    k ^= k >> 16
    k ^= k >> 8
    k ^= k >> 4
    k ^= k >> 2
    return (k ^ (k >> 1)) & 1


@inlined
def signed_sum(v: Any, at: Any, count: Any, beta: Any) -> Any:
    """Output beta of the transform over the vectors v[at + 16 k : + 16], k < count, a power of two."""
    if count == 1:
        return load16(v, at)
    if count == 2:
        return signed_sum2(v, at, beta)
    if count == 4:
        return signed_sum4(v, at, beta)
    if count == 8:
        return signed_sum8(v, at, beta)
    total = signed_sum16(v, at, beta)
    for k in range(1, count >> 4):
        total = fma16(splat16(sign_of(parity(k & (beta >> 4)))), signed_sum16(v, at + 256 * k, beta), total)
    return total
