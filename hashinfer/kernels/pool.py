"""A pool of worker threads that sleep while there is nothing to do and join native jobs when woken.

One job at a time: a call that finds the pool busy runs alone, to the same bits.
"""

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from hashinfer.errors import UnsupportedError
from hashinfer.kernels import driver, parking
from hashinfer.kernels.driver import callable_from_python, control_block
from hashinfer.native.runtime import address

_probe = np.empty(1)
if ctypes.c_int64.from_address(id(_probe) + driver.DATA_AT).value != address(_probe):
    raise UnsupportedError("this NumPy's arrays do not begin with their address, as its ABI has it")


class Program:
    """Kernel calls with their addresses filled in, for one buffer arena.

    code: int64 [steps, driver.ROW]; scratch: address of `threads` times `scratch_stride` bytes. externals: (place in
    code, offset in bytes) of each argument that is the address of an array of the call's own. `arrays[k]` takes that
    array's id, of one that lives until the run has ended.
    """

    def __init__(
        self,
        code: np.ndarray[Any, np.dtype[np.int64]],
        scratch: int,
        scratch_stride: int,
        externals: Sequence[tuple[int, int]] = (),
    ) -> None:
        counters = np.zeros(driver.COUNTS * len(code), np.int64)
        at = address(code)
        head = [at, len(code), address(counters), scratch, scratch_stride, len(externals)]
        block = np.array([*head, *(n for cell, offset in externals for n in (at + 8 * cell, offset, 0))], np.int64)
        self.arrays = block.data[driver.FIRST_EXTERNAL + 2 :: 3]
        self.block = address(block)
        self.run: Callable[[], object] = partial(callable_from_python(driver.run_alone), ctypes.c_int64(self.block))
        """Every step, on the calling thread."""
        # A program that is made for one call is gone before its run begins.
        vars(self.run)["kept"] = code, counters, block


class Pool:
    """`threads` - 1 workers; they start with the first shared run and end with the pool."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._state: _State | None = None
        self._stop: weakref.finalize[[], Pool] | None = None
        self._busy = threading.Lock()

    def run(self, program: Program) -> None:
        """Run a program with the workers' help, or alone if they are busy with another call."""
        if self.threads < 2:
            program.run()
            return
        mine: list[bool] = []
        try:
            # In one call, so that no interrupt comes between taking the lock and knowing that it is taken.
            mine.extend(map(self._busy.acquire, (False,)))
            if not mine[0]:
                program.run()
                return
            if self._state is None:
                self._state = _State(self.threads - 1)
                self._stop = weakref.finalize(self, self._state.stop)
            self._state.run(program)
        finally:
            if mine and mine[0]:
                self._busy.release()

    def close(self) -> None:
        """End the workers; a later run starts new ones."""
        with self._busy:
            state, self._state = self._state, None
            if state is not None and self._stop is not None:
                self._stop()


class _State:
    """What workers share with the pool, and no reference to the pool itself, so that it can be collected."""

    def __init__(self, workers: int) -> None:
        self.control = control_block(workers)
        self.address = int(self.control.ctypes.data)
        self.job = 0
        self.serve = callable_from_python(driver.serve)
        self.run_shared = callable_from_python(driver.run_shared)
        self._stop = callable_from_python(driver.stop)
        self.locks = [] if parking.NATIVE else [threading.Lock() for _ in range(workers)]
        """Where workers cannot sleep in native code: locked while they are to sleep."""
        for lock in self.locks:
            lock.acquire()
        try:
            for k in range(workers):
                threading.Thread(target=self._work, args=(k,), daemon=True, name=f"hashinfer-{k + 1}").start()
        except RuntimeError:
            self.stop()
            raise

    def _work(self, k: int) -> None:
        self.control[driver.SEATS + parking.SEAT * k + parking.THREAD_ID] = threading.get_native_id()
        while not self.control[driver.STOPPED]:
            if self.locks:
                self.locks[k].acquire()
            self.serve(self.address, k)

    def _open_locks(self, *, every: bool = False) -> None:
        for k, lock in enumerate(self.locks):
            parked = driver.SEATS + parking.SEAT * k + parking.PARKED
            if every or self.control[parked]:
                self.control[parked] = 0
                # Open already where the worker saw an earlier job before it slept: it will find the lock so.
                if lock.locked():
                    lock.release()

    def run(self, program: Program) -> None:
        self.job += 1
        if self.locks:
            self._open_locks()
        self.run_shared(self.address, self.job, program.block)

    def stop(self) -> None:
        self._stop(self.address)
        self._open_locks(every=True)


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_threads() -> None:
    """In a forked child there are no workers, and a lock may be held by a thread that is not there."""
    for pool in list(_pools):
        pool._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
