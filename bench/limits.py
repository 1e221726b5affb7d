"""What this machine can do at most, on one thread: measured by small kernels with nothing else to do."""

from __future__ import annotations

import ctypes
import os
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bench.environment import environment
from bench.timing import Run, alternate, once
from hashinfer.kernels.intrinsics import (
    add16,
    add_word16,
    float32_array,
    fma16,
    int32_array,
    load16,
    pick16,
    splat16,
    store16,
    xxh32_slots16,
)
from hashinfer.kernels.jit import Kernel, entry
from hashinfer.kernels.pool import Program
from hashinfer.ops.emission import KernelCall, aligned_empty, assemble

FIELDS = ("data", "floats", "slots", "repeats")
DATA, FLOATS, SLOTS, REPEATS = range(len(FIELDS))
CHAINS = 12
"""Sums that are independent of each other: enough for two units of four cycles."""


@entry(*FIELDS)
def read(args: Any, tile: Any, scratch: Any) -> None:
    """Reads all of data, `repeats` times, into eight sums."""
    data = float32_array(args[DATA], args[FLOATS] + 16)
    zero = splat16(np.float32(0.0))
    a, b, c, d, e, f, g, h = zero, zero, zero, zero, zero, zero, zero, zero
    for _ in range(args[REPEATS]):
        for k in range(0, args[FLOATS], 128):
            a, b = add16(a, load16(data, k)), add16(b, load16(data, k + 16))
            c, d = add16(c, load16(data, k + 32)), add16(d, load16(data, k + 48))
            e, f = add16(e, load16(data, k + 64)), add16(f, load16(data, k + 80))
            g, h = add16(g, load16(data, k + 96)), add16(h, load16(data, k + 112))
    out = float32_array(scratch, 16)
    store16(out, 0, add16(add16(add16(a, b), add16(c, d)), add16(add16(e, f), add16(g, h))))


@entry(*FIELDS)
def add(args: Any, tile: Any, scratch: Any) -> None:
    """CHAINS additions of sixteen floats, `repeats` times, of two sums each, so that none can be folded away."""
    data = float32_array(args[DATA], args[FLOATS])
    s = load16(data, 0)
    a, b, c, d, e, f = s, s, s, s, s, s
    g, h, i, j, k, m = s, s, s, s, s, s
    for _ in range(args[REPEATS]):
        a, b, c, d, e, f = add16(a, b), add16(b, c), add16(c, d), add16(d, e), add16(e, f), add16(f, a)
        g, h, i, j, k, m = add16(g, h), add16(h, i), add16(i, j), add16(j, k), add16(k, m), add16(m, g)
    out = float32_array(scratch, 16 * CHAINS)
    store16(out, 0, a), store16(out, 16, b), store16(out, 32, c), store16(out, 48, d)
    store16(out, 64, e), store16(out, 80, f), store16(out, 96, g), store16(out, 112, h)
    store16(out, 128, i), store16(out, 144, j), store16(out, 160, k), store16(out, 176, m)


@entry(*FIELDS)
def fma(args: Any, tile: Any, scratch: Any) -> None:
    """CHAINS fused multiply-adds of sixteen floats, `repeats` times."""
    data = float32_array(args[DATA], args[FLOATS])
    s, t = load16(data, 0), load16(data, 16)
    a, b, c, d, e, f = s, s, s, s, s, s
    g, h, i, j, k, m = s, s, s, s, s, s
    for _ in range(args[REPEATS]):
        a, b, c, d = fma16(a, t, s), fma16(b, t, s), fma16(c, t, s), fma16(d, t, s)
        e, f, g, h = fma16(e, t, s), fma16(f, t, s), fma16(g, t, s), fma16(h, t, s)
        i, j, k, m = fma16(i, t, s), fma16(j, t, s), fma16(k, t, s), fma16(m, t, s)
    out = float32_array(scratch, 16 * CHAINS)
    store16(out, 0, a), store16(out, 16, b), store16(out, 32, c), store16(out, 48, d)
    store16(out, 64, e), store16(out, 80, f), store16(out, 96, g), store16(out, 112, h)
    store16(out, 128, i), store16(out, 144, j), store16(out, 160, k), store16(out, 176, m)


@entry(*FIELDS)
def add_and_fma(args: Any, tile: Any, scratch: Any) -> None:
    """Half additions, half fused multiply-adds, which on some CPUs run on units of their own: CHAINS in all."""
    data = float32_array(args[DATA], args[FLOATS])
    s, t = load16(data, 0), load16(data, 16)
    a, b, c, d, e, f = s, s, s, s, s, s
    g, h, i, j, k, m = s, s, s, s, s, s
    for _ in range(args[REPEATS]):
        a, c, e, g, i, k = add16(a, c), add16(c, e), add16(e, g), add16(g, i), add16(i, k), add16(k, a)
        b, d, f, h, j, m = (
            fma16(b, t, s),
            fma16(d, t, s),
            fma16(f, t, s),
            fma16(h, t, s),
            fma16(j, t, s),
            fma16(m, t, s),
        )
    out = float32_array(scratch, 16 * CHAINS)
    store16(out, 0, a), store16(out, 16, b), store16(out, 32, c), store16(out, 48, d)
    store16(out, 64, e), store16(out, 80, f), store16(out, 96, g), store16(out, 112, h)
    store16(out, 128, i), store16(out, 144, j), store16(out, 160, k), store16(out, 176, m)


@entry(*FIELDS)
def gather(args: Any, tile: Any, scratch: Any) -> None:
    """A float from each of `floats` places of data, as the kernels of the xxh32 scheme fetch weights."""
    data, slots = float32_array(args[DATA], args[FLOATS]), int32_array(args[SLOTS], args[FLOATS])
    a = b = splat16(np.float32(0.0))
    for _ in range(args[REPEATS]):
        for k in range(0, args[FLOATS], 32):
            a, b = add16(a, pick16(data, slots, k)), add16(b, pick16(data, slots, k + 16))
    store16(float32_array(scratch, 16), 0, add16(a, b))


@entry(*FIELDS)
def hashes(args: Any, tile: Any, scratch: Any) -> None:
    """The end of XXH32, from a state to a signed slot, for `floats` states."""
    data, out = float32_array(args[DATA], args[FLOATS]), float32_array(scratch, args[FLOATS])
    for r in range(args[REPEATS]):
        for k in range(0, args[FLOATS], 16):
            store16(out, k, xxh32_slots16(add_word16(load16(data, k), np.uint32(r)), np.uint32(1000)))


@dataclass(frozen=True, slots=True)
class Limits:
    """Peaks a second on one thread. reads: bytes. add counts sums made either way, the faster one."""

    l1_read: float
    l2_read: float
    l3_read: float
    add: float
    fma: float
    gather: float
    hash: float

    def data(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)


def measure(seconds: float = 0.1) -> Limits:
    """All of them, by `seconds` each: the best of the samples, as a limit is what nothing exceeds."""
    caches = environment()["caches"]
    l1, l2 = caches.get("L1", 2**15), caches.get("L2", 2**18)
    sizes = {"l1_read": l1 // 2, "l2_read": max(l2 // 2, 2 * l1), "l3_read": 4 * l2}
    work: dict[str, tuple[Kernel, int, int, float]] = {}
    for name, size in sizes.items():
        floats = size // 512 * 128
        repeats = max(1, 2**22 // floats)
        work[name] = (read, floats, repeats, 4.0 * floats * repeats)
    many = 2**15
    for name, kernel in (("add", add), ("fma", fma), ("add_and_fma", add_and_fma)):
        work[name] = (kernel, 32, many, 16.0 * CHAINS * many)
    floats = l1 // 8 // 128 * 32
    for name, kernel in (("gather", gather), ("hash", hashes)):
        work[name] = (kernel, floats, 256, 256.0 * floats)
    runs = {name: _runner(kernel, floats, repeats) for name, (kernel, floats, repeats, _) in work.items()}
    for run in runs.values():
        once(run)
    samples = alternate(runs, seconds * len(runs))
    rates = {name: work[name][3] / min(seen) for name, seen in samples.items()}
    mixed = rates.pop("add_and_fma")
    return Limits(**{**rates, "add": max(rates["add"], mixed)})


def processors_together(threads: int, samples: int = 3) -> float:
    """How many times the work of one thread that many do at once, of loops that share nothing and touch no memory.

    What the machine gives at this moment, whatever engine uses it: less than `threads` where its processors are one
    core's two threads, or others use them. The median of a few samples, a few milliseconds each.
    """
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(fma.address)
    work = [_Loop(call) for _ in range(threads)]
    found = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(samples):
            alone = once(work[0].run)
            started = threading.Barrier(threads)
            spans = list(pool.map(lambda k, started=started: work[k].span(started, k), range(threads)))
            wall = max(end for _, end in spans) - min(began for began, _ in spans)
            found.append(threads * alone / wall)
    return statistics.median(found)


class _Loop:
    """A few milliseconds of multiply-adds in registers."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self._data = aligned_empty(4 * 64).view(np.float32)
        self._data.fill(1e-20)
        self._scratch = aligned_empty(4 * 16 * (CHAINS + 1))
        self._args = np.array([self._data.ctypes.data, 32, 0, 2**20], np.int64)

    def run(self, _number: int) -> None:
        self._call(self._args.ctypes.data, 0, self._scratch.ctypes.data)

    def span(self, started: threading.Barrier, number: int) -> tuple[float, float]:
        """When it began and ended, begun together with others, each on a processor of its own."""
        allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
        if allowed:
            # Linux may wake both on one processor, and takes longer than this to move one away.
            os.sched_setaffinity(0, {sorted(allowed)[number % len(allowed)]})
        try:
            started.wait()
            began = time.perf_counter()
            self.run(0)
            return began, time.perf_counter()
        finally:
            if allowed:
                os.sched_setaffinity(0, allowed)


def _runner(kernel: Kernel, floats: int, repeats: int) -> Run:
    rng = np.random.default_rng(0)
    data = aligned_empty(4 * (floats + 32)).view(np.float32)
    data.fill(1e-20)
    slots = rng.integers(0, 2 * floats, floats + 32).astype(np.int32)
    scratch = aligned_empty(4 * (max(floats, 16 * CHAINS) + 16)).view(np.float32)
    args = {"data": data, "floats": floats, "slots": slots, "repeats": repeats}
    made = assemble([KernelCall(kernel, 1, args, scratch.nbytes, 0.0)])
    program = Program(made.code, scratch.ctypes.data, scratch.nbytes)

    def run(_number: int, _kept: Any = (made, scratch)) -> None:
        program.run()

    return run
