"""The native driver: runs a program of kernel calls, alone or with workers that join as they wake.

A program is int64 [steps, ROW]: a kernel's arguments from column 0, its number of tiles and its address in the last
columns. A step's tiles are claimed in GROUPS groups; the next step begins when all are done. Every other thread begins
with the second half, to find in its cache what it wrote before, and then helps with the rest of the other; all go up,
which measured faster than down. A worker that wakes late claims less: nobody waits
for one that has not begun. Who computes a tile changes nothing in it, so neither do more threads.

A program's block says where it lies, and which of its arguments are addresses of the call's own arrays. Python puts
the arrays' ids there, which it has sooner than their addresses: NumPy's ABI has those first in its objects.

A pool shares one control block. OPEN holds a job's number while it may be joined, ACTIVE counts the workers inside
it; the caller closes the job and waits for ACTIVE to be zero before it touches the program again. A worker counts
itself in *before* it looks at OPEN a second time, so none can slip into a job that has been closed.
"""

import ctypes
import sys
from functools import cache
from typing import Any

import numpy as np

from hashinfer.kernels.jit import Kernel, compiled, device, external
from hashinfer.kernels.parking import PARKED, SEAT, call, dismiss, sleep
from hashinfer.kernels.vectors import atomic_add, atomic_load, atomic_store, call_entry, intp_at, relax

ROW = 64
TILES, ADDRESS = ROW - 2, ROW - 1
LINE = 8
COUNTS = 3 * LINE
"""Of a step's tiles, a cache line each: claimed of the first half, of the second, done."""
GROUPS = 128

DATA_AT = object.__basicsize__
"""How many bytes behind its id an array keeps the address of its data."""

CODE, STEPS, COUNTERS, SCRATCH, SCRATCH_STRIDE, EXTERNALS, FIRST_EXTERNAL = range(7)
"""Places in a program's block; from the last on, for each external: its argument's address, an offset, the array."""
OPEN, ACTIVE, SEATS = 0, 8, 24
PROGRAM, WORKERS, STOPPED = range(16, 19)
"""Places in a control block; the workers' seats (see parking.py) begin at SEATS."""
SPINS_BEFORE_YIELD = 256
SPINS_BEFORE_PARKING = 3000


def control_block(workers: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """A control block for that many workers, all of them parked."""
    block = np.zeros(SEATS + SEAT * workers, np.int64)
    block[WORKERS] = workers
    block[SEATS + PARKED :: SEAT] = 1
    return block


_yield_processor: Any = relax if sys.platform == "win32" else external("sched_yield", "int32")


@device
def _wait(counters: Any, at: Any, value: Any) -> None:
    """Until a counter has that value."""
    spins = 0
    while atomic_load(counters, at) != value:
        if spins < SPINS_BEFORE_YIELD:
            relax()
        else:
            _yield_processor()
        spins += 1


@device
def _run_steps(control: Any, thread: Any) -> None:
    program = intp_at(control[PROGRAM])
    code, counters = program[CODE], intp_at(program[COUNTERS])
    scratch = program[SCRATCH] + thread * program[SCRATCH_STRIDE]
    for s in range(program[STEPS]):
        row = intp_at(code + 8 * ROW * s)
        tiles, address = row[TILES], row[ADDRESS]
        at, group, half, done = COUNTS * s, tiles // GROUPS + 1, (tiles + 1) // 2, 0
        for turn in range(2):
            second = (thread ^ turn) & 1
            first, end, own = half * second, tiles if second else half, at + LINE * second
            k = first + atomic_add(counters, own, group)
            while k < end:
                last = min(k + group, end)
                for tile in range(k, last):
                    call_entry(address, row, tile, scratch)
                done += last - k
                k = first + atomic_add(counters, own, group)
        atomic_add(counters, at + 2 * LINE, done)
        _wait(counters, at + 2 * LINE, tiles)


@device
def _bind(program: Any) -> None:
    for k in range(program[EXTERNALS]):
        at = FIRST_EXTERNAL + 3 * k
        intp_at(program[at])[0] = intp_at(program[at + 2] + DATA_AT)[0] + program[at + 1]


@compiled
def run_alone(block: Any) -> None:
    """Every tile of every step of a program, in order, on the calling thread."""
    program = intp_at(block)
    _bind(program)
    code, scratch = program[CODE], program[SCRATCH]
    for s in range(program[STEPS]):
        row = intp_at(code + 8 * ROW * s)
        for tile in range(row[TILES]):
            call_entry(row[ADDRESS], row, tile, scratch)


@compiled
def run_shared(control_address: Any, job: Any, block: Any) -> None:
    """Open the job in the control block, work on it, close it, wait for the workers to leave."""
    control, program = intp_at(control_address), intp_at(block)
    _bind(program)
    control[PROGRAM] = block
    counters = intp_at(program[COUNTERS])
    for k in range(COUNTS * program[STEPS]):
        counters[k] = 0
    atomic_store(control, OPEN, job)
    for k in range(control[WORKERS]):
        call(control_address + 8 * (SEATS + SEAT * k))
    _run_steps(control, 0)
    atomic_store(control, OPEN, 0)
    _wait(control, ACTIVE, 0)


@compiled
def serve(control_address: Any, worker: Any) -> None:
    """Join jobs as they open, as worker 0, 1, ...; park after a short spin without one.

    Returns when the pool is stopped, and where workers park in Python.
    """
    control = intp_at(control_address)
    own = SEATS + SEAT * worker
    last, spins = 0, 0
    while control[STOPPED] == 0:
        job = atomic_load(control, OPEN)
        if job not in (0, last):
            atomic_add(control, ACTIVE, 1)
            job = atomic_load(control, OPEN)
            if job != 0:
                last = job
                _run_steps(control, worker + 1)
            atomic_add(control, ACTIVE, -1)
            spins = 0
            continue
        spins += 1
        if spins < SPINS_BEFORE_PARKING:
            relax()
            continue
        atomic_store(control, own + PARKED, 1)
        job = atomic_load(control, OPEN)
        if job not in (0, last):
            atomic_store(control, own + PARKED, 0)
        elif atomic_load(control, STOPPED) != 0 or not sleep(control_address + 8 * own):
            return
        spins = 0


@compiled
def stop(control_address: Any) -> None:
    """Have all workers return."""
    control = intp_at(control_address)
    atomic_store(control, STOPPED, 1)
    for k in range(control[WORKERS]):
        dismiss(control_address + 8 * (SEATS + SEAT * k))


@cache
def callable_from_python(kernel: Kernel) -> Any:
    """A ctypes function (it releases the GIL) over a driver entry of int64 arguments."""
    return ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(kernel.fields))(kernel.address)
