"""Where buffers lie in one arena: two share bytes only if their lifetimes are apart."""

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from hashinfer.ops.emission import aligned


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A buffer of `size` bytes that is needed from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


class _Holes:
    """Free stretches of the arena, found by size or by either end."""

    def __init__(self) -> None:
        self._by_size: list[tuple[int, int]] = []
        self._end: dict[int, int] = {}
        self._start: dict[int, int] = {}

    def smallest_of(self, size: int) -> tuple[int, int] | None:
        """Take out the smallest hole of at least `size` bytes."""
        at = bisect_left(self._by_size, (size, -1))
        if at == len(self._by_size):
            return None
        start = self._by_size[at][1]
        return self._take(start)

    def ending_at(self, end: int) -> int | None:
        """Take out the hole that ends at `end`; returns its start."""
        return None if end not in self._start else self._take(self._start[end])[0]

    def add(self, start: int, end: int) -> None:
        """Free [start, end), joined with the holes beside it."""
        if start == end:
            return
        before = self.ending_at(start)
        if before is not None:
            start = before
        if end in self._end:
            end = self._take(end)[1]
        insort(self._by_size, (end - start, start))
        self._end[start], self._start[end] = end, start

    def _take(self, start: int) -> tuple[int, int]:
        end = self._end.pop(start)
        del self._start[end]
        del self._by_size[bisect_left(self._by_size, (end - start, start))]
        return start, end


def lay_out(buffers: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Byte offsets of the buffers, aligned, and the bytes of the arena.

    Walks the steps in order and gives each buffer the smallest hole that holds it, else room at the end.
    """
    offsets = [0] * len(buffers)
    live: list[tuple[int, int, int]] = []
    holes, total = _Holes(), 0
    for index in sorted(range(len(buffers)), key=lambda k: (buffers[k].first, -buffers[k].size)):
        buffer = buffers[index]
        while live and live[0][0] < buffer.first:
            _, start, end = heapq.heappop(live)
            holes.add(start, end)
        size = aligned(buffer.size)
        hole = holes.smallest_of(size)
        if hole is not None:
            start = hole[0]
            holes.add(start + size, hole[1])
        else:
            last = holes.ending_at(total)
            start = total if last is None else last
            total = start + size
        offsets[index] = start
        heapq.heappush(live, (buffer.last, start, start + size))
    return offsets, total
