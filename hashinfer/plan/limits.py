"""What one run may take: bytes, and time."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hashinfer.errors import TimeLimitError, at_node

_CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
FALLBACK = 2**34
OBJECT_BYTES = 128
"""What an array or a list takes beside its elements, about."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What is left to a run. bytes: for the values that it makes; seconds: the whole of its time limit, or None;
    deadline: when they are over, on time.monotonic's clock."""

    bytes: int
    seconds: float | None = None
    deadline: float = float("inf")

    @classmethod
    def starting(cls, size: int, seconds: float | None) -> Limits:
        """Limits of a run that starts now."""
        return cls(size) if seconds is None else cls(size, seconds, time.monotonic() + seconds)

    def without(self, held: int) -> Limits:
        """What is left where `held` bytes are taken. May be below zero, and then allows nothing."""
        return Limits(self.bytes - held, self.seconds, self.deadline)

    def check_time(self, op: str, node: str) -> None:
        """Raise TimeLimitError, naming what would come next, if the time is over."""
        if self.seconds is not None and time.monotonic() > self.deadline:
            raise TimeLimitError(at_node(op, node, f"the run's time limit of {self.seconds:g} s is over"))


def value_bytes(value: Any) -> int:
    """Bytes that a value holds: an array, a list of values, or None."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "O":
            return OBJECT_BYTES + value.nbytes + sum({id(item): sys.getsizeof(item) for item in value.flat}.values())
        return OBJECT_BYTES + value.nbytes
    if isinstance(value, list):
        return OBJECT_BYTES + sum(map(value_bytes, value))
    return 0


def physical_memory() -> int:
    """Bytes of RAM that this process may use: the machine's, or its cgroup's where that is less."""
    total = FALLBACK
    with suppress(AttributeError, ValueError, OSError):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in _CGROUP_FILES:
        with suppress(OSError, ValueError):
            total = min(total, int(path.read_text()))
    return total
