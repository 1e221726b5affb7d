"""How a pool's workers sleep and are woken: on Linux by a futex, elsewhere by a lock of Python's (see pool.py).

When other threads have kept every processor busy until just now, Linux wakes a worker on the processor that its caller
runs on, though another one is free, and leaves both there for many milliseconds. So a caller bars a sleeping worker
from its own processor before it wakes it; awake, it lifts the bar. A worker that may run nowhere else is
left asleep.
"""

import platform
import sys
from typing import Any

import numpy as np

from hashinfer.kernels.jit import device, external
from hashinfer.kernels.vectors import atomic_load, atomic_store, intp_at

PARKED, THREAD_ID, BARRED, ALLOWED, MASK, SEAT = 0, 1, 2, 8, 24, 40
"""Places in a worker's seat, int64 [SEAT]: PARKED is 1 while the worker sleeps or is about to, THREAD_ID the system's
name of it, BARRED 1 from a bar to its lifting; ALLOWED and MASK are sets of processors, MASK_BYTES each."""
MASK_BYTES = 128

_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}.get(platform.machine(), 0)
"""The number of the system call, which the C library has no function for."""
_WAIT, _WAKE = 128, 129

NATIVE = sys.platform == "linux" and sys.byteorder == "little" and _FUTEX != 0
"""Whether workers sleep in native code. A futex is an int32: the lower half of PARKED."""

if NATIVE:
    _syscall = external("syscall", "int64", *["int64"] * 7)
    _sched_getcpu = external("sched_getcpu", "int32")
    _affinity = ("int32", "int32", "int64", "int64")
    _sched_getaffinity = external("sched_getaffinity", *_affinity)
    _sched_setaffinity = external("sched_setaffinity", *_affinity)

    @device
    def _bar(seat_address: Any) -> bool:
        """Keep a worker off the calling thread's processor; False where it may run nowhere else."""
        room = intp_at(seat_address)
        allowed, mask = seat_address + 8 * ALLOWED, seat_address + 8 * MASK
        thread, processor = room[THREAD_ID], np.int64(_sched_getcpu())
        if thread == 0 or processor < 0 or processor >= 8 * MASK_BYTES:
            return True
        # A worker that woke by itself has not lifted the last bar: what it was allowed before is known.
        if room[BARRED] == 0 and _sched_getaffinity(thread, MASK_BYTES, allowed) != 0:
            return True
        others = 0
        for k in range(MASK_BYTES // 8):
            word = room[ALLOWED + k]
            if k == processor // 64:
                word &= ~(np.int64(1) << (processor % 64))
            room[MASK + k] = word
            others |= word
        if others == 0:
            return False
        room[BARRED] = 1
        _sched_setaffinity(thread, MASK_BYTES, mask)
        return True

    @device
    def _wake(seat_address: Any) -> None:
        atomic_store(intp_at(seat_address), PARKED, 0)
        _syscall(_FUTEX, seat_address, _WAKE, 1, 0, 0, 0)

    @device
    def call(seat_address: Any) -> None:
        """Wake the worker of a seat if it sleeps, on another processor than the caller's."""
        if atomic_load(intp_at(seat_address), PARKED) != 0 and _bar(seat_address):
            _wake(seat_address)

    @device
    def dismiss(seat_address: Any) -> None:
        """Wake the worker of a seat on whatever processor."""
        _wake(seat_address)

    @device
    def sleep(seat_address: Any) -> bool:
        """Sleep until called or dismissed, if the seat still says PARKED; True once awake."""
        room = intp_at(seat_address)
        while atomic_load(room, PARKED) != 0:
            _syscall(_FUTEX, seat_address, _WAIT, 1, 0, 0, 0)
        if room[BARRED] != 0:
            room[BARRED] = 0
            _sched_setaffinity(0, MASK_BYTES, seat_address + 8 * ALLOWED)
        return True

else:

    @device
    def call(_seat_address: Any) -> None:
        return

    @device
    def dismiss(_seat_address: Any) -> None:
        return

    @device
    def sleep(_seat_address: Any) -> bool:
        return False
