"""What one run may take: bytes, and time."""

from __future__ import annotations

import _thread
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
AGAIN_SECONDS = 0.2
"""Until code that has outlived its time limit is told once more."""
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


class _Watch:
    """A thread that raises _Over in the thread that made it, from a deadline on, until it is stopped.

    Again and again: one that is raised in a finalizer is lost. As _Over may come between any two lines of the watched
    thread, what the two share changes by single steps that may be done twice; an Event would be left locked.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._watched = ctypes.c_ulong(threading.get_ident())
        self._gate = threading.Lock()
        self._gate.acquire()
        self._begun, self._ended, self._fired = False, True, False

    def start(self) -> None:
        _thread.start_new_thread(self._run, ())
        # Until a thread has begun, CPython 3.11 takes it for the one that started it, and would raise _Over in it.
        while not self._begun:
            time.sleep(0)

    def _run(self) -> None:
        self._begun, self._ended = True, False
        wait = min(max(self._deadline - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        while not self._gate.acquire(timeout=wait):
            self._fired = True
            self._fire()
            wait = AGAIN_SECONDS
        self._ended = True

    def _fire(self) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(self._watched, ctypes.py_object(_Over))

    def stop(self) -> None:
        """Nothing is raised any more once this returns, nor on its way."""
        with suppress(RuntimeError):
            self._gate.release()
        while not self._ended:
            time.sleep(0)
        while self._fired:
            # One more takes the place of what may be on its way, and is met here. One that is taken back instead would
            # leave CPython 3.11 looking for it ever after, and without end where the program is traced.
            try:
                self._fire()
                for _ in range(1000):
                    pass
            except _Over:
                self._fired = False


def _end(watch: _Watch) -> None:
    """Stop it, whatever arrives meanwhile: an _Over is dropped, an interrupt is raised afterwards."""
    late: BaseException | None = None
    while True:
        try:
            watch.stop()
            break
        except _Over:
            pass
        except KeyboardInterrupt as error:
            late = error
    if late is not None:
        raise late


def in_time(limits: Limits, op: str, node: str, work: Callable[[], Result]) -> Result:
    """What `work` returns; where its Python code still runs when the time is over, it ends by TimeLimitError."""
    if limits.seconds is None:
        return work()
    watch = _Watch(limits.deadline)
    try:
        try:
            watch.start()
            return work()
        finally:
            _end(watch)
    except BaseException as error:
        _end(watch)
        if isinstance(error, _Over):
            raise TimeLimitError(at_node(op, node, limits.over())) from None
        raise


def value_bytes(value: Any) -> int:
    """Bytes that a value holds: an array, a list of values, or None."""
    if isinstance(value, np.ndarray):
        objects = {id(item): sys.getsizeof(item) for item in value.flat} if value.dtype.kind == "O" else {}
        return OBJECT_BYTES + value.nbytes + sum(objects.values())
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
