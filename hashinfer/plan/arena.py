"""Where buffers lie in one arena: two share bytes only if their lifetimes are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hashinfer.ops.emission import aligned


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A buffer of `size` bytes that is needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def lay_out(buffers: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Byte offsets of the buffers and the bytes of the arena: aligned, largest first, each at the lowest free place."""
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, Lifetime]] = []
    total = 0
    for index in sorted(range(len(buffers)), key=lambda k: (-buffers[k].size, buffers[k].first)):
        buffer = buffers[index]
        size, at = aligned(buffer.size), 0
        for start, end, other in placed:
            if other.last < buffer.first or buffer.last < other.first:
                continue
            if at + size <= start:
                break
            at = max(at, end)
        offsets[index] = at
        placed.append((at, at + size, buffer))
        placed.sort(key=lambda entry: entry[:2])
        total = max(total, at + size)
    return offsets, total
