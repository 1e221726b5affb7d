"""Timing functions side by side: in turn, after a warm-up, until a time budget is used up.

Each function runs in short bursts, one function's after the other's, and the first call of a burst is not counted: the
caches hold what the other one left there. So each is timed as it runs in steady use, and a change of the machine's
speed meets all of them. A long budget is spread over a bounded number of bursts, each with more calls that are not
counted before it: what is kept stays small.
"""

import contextlib
import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BURST_NS, MOST_IN_BURST = 3_000_000, 64
WARM_UP_NS, WARM_UP_CALLS = 50_000_000, 20
LEAST_ROUNDS, MOST_ROUNDS = 3, 400

PAUSE_SECONDS, MOST_PAUSES = 0.002, 100
"""Between functions: until no other thread of this process runs. Pools spin for a while after a run (OpenBLAS's for
20 ms, onnxruntime's for 80), and would take a processor from the engine that comes next."""

Floats = npt.NDArray[np.float64]


class Samples:
    """Times of one function, in nanoseconds: `all`, and the median of each round's burst in `rounds`."""

    def __init__(self, bursts: list[list[int]]) -> None:
        self.all: Floats = np.concatenate(bursts, dtype=np.float64)
        self.rounds: Floats = np.array([np.median(burst) for burst in bursts], np.float64)

    @property
    def median(self) -> float:
        """Nanoseconds."""
        return float(np.median(self.all))

    def summary(self) -> dict[str, Any]:
        """Microseconds: p25, p50, p75, p90, p99; and the number of calls."""
        shares = (25, 50, 75, 90, 99)
        found = zip(shares, np.percentile(self.all, shares), strict=True)
        return {f"p{share}_us": float(ns) / 1000 for share, ns in found} | {"calls": self.all.size}


def alternate(
    functions: Mapping[str, Callable[[], Any]], seconds: float, *, settled: bool = False
) -> dict[str, Samples]:
    """Time `functions` in turn for about `seconds` in all, at least three rounds (one where a round takes longer).

    settled: wait before each burst until the threads of other functions have gone to sleep.
    """
    if not functions:
        return {}
    budget = int(1e9 * seconds)
    bursts, leads = dict.fromkeys(functions, 1), dict.fromkeys(functions, 0)
    with _no_collection():
        spent = 0
        for name, function in functions.items():
            once, used = _warm_up(function, budget // (10 * len(functions)))
            spent += used
            bursts[name] = int(min(MOST_IN_BURST, max(1, BURST_NS // max(once, 1))))
            leads[name] = max(0, budget // (MOST_ROUNDS * len(functions)) - once * bursts[name])
        seen: dict[str, list[list[int]]] = {name: [] for name in functions}
        order, started, longest = list(functions), time.perf_counter_ns() - spent, 0
        for number in itertools.count():
            begun = time.perf_counter_ns()
            least = 1 if longest > budget else LEAST_ROUNDS
            if number >= least and begun - started + longest > budget:
                break
            for name in order:
                if settled:
                    settle()
                seen[name].append(_burst(functions[name], bursts[name], leads[name]))
            order = [*order[1:], order[0]]
            longest = max(longest, time.perf_counter_ns() - begun)
    return {name: Samples(found) for name, found in seen.items()}


def settle() -> None:
    """Sleep until no other thread of this process wants a processor, or MOST_PAUSES pauses."""
    for _ in range(MOST_PAUSES):
        time.sleep(PAUSE_SECONDS)
        if not _others_run():
            return


def _others_run() -> bool:
    """Whether another thread of this process runs or is ready to; where the system does not say, no.

    The process's processor time would not do: of a thread that spins, it knows nothing until the next tick of the
    system's clock, 4 ms or more later.
    """
    own = threading.get_native_id()
    for stat in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):
            if int(stat.parent.name) != own and stat.read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def ratio(slower: Samples, faster: Samples) -> dict[str, float]:
    """How many times faster `faster` is, round by round: the median and the quartiles."""
    low, middle, high = np.percentile(slower.rounds / faster.rounds, (25, 50, 75))
    return {"median": float(middle), "p25": float(low), "p75": float(high)}


def _burst(function: Callable[[], Any], calls: int, lead: int) -> list[int]:
    clock, times = time.perf_counter_ns, []
    begun = clock()
    while clock() - begun < lead:
        function()
    for _ in range(calls + (calls > 1)):
        start = clock()
        function()
        times.append(clock() - start)
    return times[1:] if calls > 1 else times


def _warm_up(function: Callable[[], Any], limit: int) -> tuple[int, int]:
    """(nanoseconds of the quickest call, of all calls) but the first, which may compile what the others only run."""
    function()
    best, started = 2**62, time.perf_counter_ns()
    for _ in range(WARM_UP_CALLS):
        begun = time.perf_counter_ns()
        function()
        now = time.perf_counter_ns()
        best = min(best, now - begun)
        if now - started > min(limit, WARM_UP_NS):
            break
    return best, time.perf_counter_ns() - started


@contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage collector held back: it would run in whatever happens to be timed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
