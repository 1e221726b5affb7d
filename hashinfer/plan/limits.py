"""What one run may take: bytes, and time."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hashinfer.errors import TimeLimitError, at_node

_CGROUP_FILES = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
FALLBACK = 2**34
Result = TypeVar("Result")
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
            raise TimeLimitError(at_node(op, node, self.over()))

    def over(self) -> str:
        """What is said when the time is over."""
        return f"the run's time limit of {self.seconds:g} s is over"


class _Over(BaseException):
    """Raised inside the code that is to end: no Exception, so that nothing there takes it for an error of its own."""


def in_time(limits: Limits, op: str, node: str, work: Callable[[], Result]) -> Result:
    """What `work` returns; where its Python code still runs when the time is over, it ends by TimeLimitError."""
    if limits.seconds is None:
        return work()
    thread, guard, state = threading.get_ident(), threading.Lock(), {"fired": False, "done": False}

    def fire() -> None:
        with guard:
            if not state["done"]:
                state["fired"] = True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_Over))

    timer = threading.Timer(max(limits.deadline - time.monotonic(), 0.0), fire)
    timer.daemon = True
    try:
        try:
            timer.start()
            result = work()
        finally:
            timer.cancel()
            with guard:
                state["done"] = True
            while state["fired"] and not isinstance(sys.exception(), _Over):
                # It is on its way, and must not arrive anywhere else.
                time.sleep(0)
    except _Over:
        raise TimeLimitError(at_node(op, node, limits.over())) from None
    return result


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
