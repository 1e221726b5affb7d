"""The Walsh-Hadamard transform of `lanes` vectors at once, in place, by radix-8 passes over explicit vectors.

Unnormalised, in natural (Hadamard) order: V <- H V, H[k, l] = (-1)^popcount(k & l). Its error is norm-wise:
at most log2(width) eps ||v||_2 a vector, in the 2-norm scaled by sqrt(width).
"""

from __future__ import annotations

from typing import Any

from hashinfer.kernels.intrinsics import add16, load16, mul16, splat16, store16, sub16, swap1, swap2, swap4, swap8
from hashinfer.kernels.jit import device

BLOCK = 256
"""Vectors that stay in a first-level cache between passes: 16 KiB."""


@device
def _butterflies8(
    v: Any, at: Any, step: Any, a0: Any, a1: Any, a2: Any, a3: Any, a4: Any, a5: Any, a6: Any, a7: Any
) -> None:
    """The transform of eight vectors, stored at v[at], v[at + step], ..."""
    b0, b1, b2, b3 = add16(a0, a1), sub16(a0, a1), add16(a2, a3), sub16(a2, a3)
    b4, b5, b6, b7 = add16(a4, a5), sub16(a4, a5), add16(a6, a7), sub16(a6, a7)
    a0, a1, a2, a3 = add16(b0, b2), add16(b1, b3), sub16(b0, b2), sub16(b1, b3)
    a4, a5, a6, a7 = add16(b4, b6), add16(b5, b7), sub16(b4, b6), sub16(b5, b7)
    store16(v, at, add16(a0, a4))
    store16(v, at + step, add16(a1, a5))
    store16(v, at + 2 * step, add16(a2, a6))
    store16(v, at + 3 * step, add16(a3, a7))
    store16(v, at + 4 * step, sub16(a0, a4))
    store16(v, at + 5 * step, sub16(a1, a5))
    store16(v, at + 6 * step, sub16(a2, a6))
    store16(v, at + 7 * step, sub16(a3, a7))


@device
def _radix8(v: Any, at: Any, step: Any) -> None:
    a0, a1 = load16(v, at), load16(v, at + step)
    a2, a3 = load16(v, at + 2 * step), load16(v, at + 3 * step)
    a4, a5 = load16(v, at + 4 * step), load16(v, at + 5 * step)
    a6, a7 = load16(v, at + 6 * step), load16(v, at + 7 * step)
    _butterflies8(v, at, step, a0, a1, a2, a3, a4, a5, a6, a7)


@device
def _radix4(v: Any, at: Any, step: Any) -> None:
    a0, a1, a2, a3 = load16(v, at), load16(v, at + step), load16(v, at + 2 * step), load16(v, at + 3 * step)
    b0, b1, b2, b3 = add16(a0, a1), sub16(a0, a1), add16(a2, a3), sub16(a2, a3)
    store16(v, at, add16(b0, b2))
    store16(v, at + step, add16(b1, b3))
    store16(v, at + 2 * step, sub16(b0, b2))
    store16(v, at + 3 * step, sub16(b1, b3))


@device
def _radix2(v: Any, at: Any, step: Any) -> None:
    a, b = load16(v, at), load16(v, at + step)
    store16(v, at, add16(a, b))
    store16(v, at + step, sub16(a, b))


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


@device
def _across_vectors(v: Any, first: Any, vectors: Any) -> None:
    """The transform over the first axis of v[first : first + vectors, 16]: wide passes, then blocks in cache."""
    block = vectors
    while block > BLOCK:
        h = block // 8
        for start in range(first, first + vectors, block):
            for q in range(start, start + h):
                _radix8(v, q * 16, h * 16)
        block = h
    for start in range(first, first + vectors, block):
        h = 1
        while h * 8 <= block:
            for at in range(start, start + block, 8 * h):
                for q in range(at, at + h):
                    _radix8(v, q * 16, h * 16)
            h *= 8
        if h * 4 <= block:
            for at in range(start, start + block, 4 * h):
                for q in range(at, at + h):
                    _radix4(v, q * 16, h * 16)
            h *= 4
        if h < block:
            for at in range(start, start + block, 2 * h):
                for q in range(at, at + h):
                    _radix2(v, q * 16, h * 16)


@device
def _scalar(v: Any, size: Any, lanes: Any) -> None:
    h = lanes
    while h < size:
        for block in range(0, size, 2 * h):
            for q in range(block, block + h):
                a, b = v[q], v[q + h]
                v[q], v[q + h] = a + b, a - b
        h *= 2


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
    _across_vectors(v, 0, size // 16)


@device
def _scaled16(spectrum: Any, at: Any, u: Any, k: Any) -> Any:
    return mul16(load16(spectrum, at), splat16(u[k]))


@device
def modulated_hadamard(spectrum: Any, at: Any, u: Any, start: Any, step: Any, width: Any, lanes: Any, v: Any) -> None:
    """v[width, lanes] = H (spectrum . u): spectrum[width, lanes] from `at`, u[k] at start + k step.

    With sixteen lanes the product is taken on the way into the first pass.
    """
    if lanes < 16 or width < 8:
        for k in range(width):
            for lane in range(lanes):
                v[k * lanes + lane] = spectrum[at + k * lanes + lane] * u[start + k * step]
        hadamard(v, width, lanes)
        return
    h = width // 8
    for q in range(h):
        _butterflies8(
            v,
            q * 16,
            h * 16,
            _scaled16(spectrum, at + q * 16, u, start + q * step),
            _scaled16(spectrum, at + (q + h) * 16, u, start + (q + h) * step),
            _scaled16(spectrum, at + (q + 2 * h) * 16, u, start + (q + 2 * h) * step),
            _scaled16(spectrum, at + (q + 3 * h) * 16, u, start + (q + 3 * h) * step),
            _scaled16(spectrum, at + (q + 4 * h) * 16, u, start + (q + 4 * h) * step),
            _scaled16(spectrum, at + (q + 5 * h) * 16, u, start + (q + 5 * h) * step),
            _scaled16(spectrum, at + (q + 6 * h) * 16, u, start + (q + 6 * h) * step),
            _scaled16(spectrum, at + (q + 7 * h) * 16, u, start + (q + 7 * h) * step),
        )
    for block in range(8):
        _across_vectors(v, block * h, h)
