"""Where buffers lie in one arena: two share bytes only if their lifetimes are apart."""

from __future__ import annotations

import heapq
from bisect import insort
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
    """Byte offsets of the buffers, aligned, and the bytes of the arena.

    Walks the steps in order and gives each buffer the smallest hole that holds it, else room at the end.
    """
    offsets = [0] * len(buffers)
    live: list[tuple[int, int, int]] = []
    holes: list[tuple[int, int]] = []
    total = 0
    for index in sorted(range(len(buffers)), key=lambda k: (buffers[k].first, -buffers[k].size)):
        buffer = buffers[index]
        while live and live[0][0] < buffer.first:
            _, start, end = heapq.heappop(live)
            _release(holes, start, end)
        size = aligned(buffer.size)
        fitting = [hole for hole in holes if hole[1] - hole[0] >= size]
        if fitting:
            start, end = min(fitting, key=lambda hole: hole[1] - hole[0])
            holes.remove((start, end))
            if start + size < end:
                insort(holes, (start + size, end))
        else:
            start = total
            if holes and holes[-1][1] == total:
                start = holes.pop()[0]
            total = start + size
        offsets[index] = start
        heapq.heappush(live, (buffer.last, start, start + size))
    return offsets, total


def _release(holes: list[tuple[int, int]], start: int, end: int) -> None:
    """Add [start, end) to the sorted holes, joined with its neighbours."""
    if start == end:
        return
    for hole in [h for h in holes if h[1] == start or h[0] == end]:
        holes.remove(hole)
        start, end = min(start, hole[0]), max(end, hole[1])
    insort(holes, (start, end))
