"""Times of several engines in turn, so that drift of the machine meets all alike.

In a round each engine works for a short burst: runs that are not timed, which bring its data back into the caches, then
timed ones. The burst's median is one sample. Ratios are taken round by round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hashinfer.cli.timing import settle

Run = Callable[[int], Any]
"""Called with a running number, which picks one of the inputs."""
Samples = dict[str, list[float]]

BURST_SECONDS, BURST_RUNS = 0.002, 50
WARM_RUNS, WARM_SECONDS = 3, 0.001
"""Runs before a burst is timed: a processor that has slept is slow for its first microseconds."""
LONG_SECONDS = 0.05
"""A run this long needs no warm-up in its burst: it reads its own data many times."""
ROUNDS = (3, 31)
NUMBERS = 1009
"""Runs of round r are numbered from NUMBERS r on; a burst is shorter, and the number prime to those of inputs."""
FEWEST_LONG, LONG_ROUND_SECONDS = 2, 4.0
"""Rounds where one takes so long: what comes of them are two samples, and quartiles that say little."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and quartiles of `count` samples."""

    median: float
    low: float
    high: float
    count: int

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        """Of at least one sample."""
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
        return Spread(median, low, high, len(samples))

    def data(self, scale: float = 1.0) -> dict[str, float]:
        """For JSON."""
        return {"median": self.median * scale, "quartiles": [self.low * scale, self.high * scale], "count": self.count}


def once(run: Run) -> float:
    """Seconds of one run."""
    started = time.perf_counter()
    run(0)
    return time.perf_counter() - started


def _burst(run: Run, expected: float, number: int) -> float:
    """The median of a burst, in seconds."""
    settle()
    if expected < LONG_SECONDS:
        started, done = time.perf_counter(), 0
        while done < (WARM_RUNS if expected < BURST_SECONDS else 1) or time.perf_counter() - started < WARM_SECONDS:
            run(number + done)
            done += 1
    samples: list[float] = []
    spent = 0.0
    while not samples or (spent < BURST_SECONDS and len(samples) < BURST_RUNS):
        started = time.perf_counter()
        run(number + len(samples))
        samples.append(time.perf_counter() - started)
        spent += samples[-1]
    return statistics.median(samples)


def alternate(runs: Mapping[str, Run], budget: float, known: Mapping[str, float] | None = None) -> Samples:
    """Samples in seconds for each engine, the same number for all: rounds until `budget` seconds are spent.

    Every engine has run before: nothing is compiled or allocated for the first time here. known: seconds of a run,
    where that is known well enough to go without another one. The order turns from round to round.
    """
    samples: Samples = {name: [] for name in runs}
    expected = {name: known[name] if known and name in known else once(run) for name, run in runs.items()}
    fewest = FEWEST_LONG if sum(expected.values()) > LONG_ROUND_SECONDS else ROUNDS[0]
    names = list(runs)
    started = time.perf_counter()
    for done in range(ROUNDS[1]):
        spent = time.perf_counter() - started
        if done >= fewest and spent * (done + 1) / done > budget:
            break
        for name in names:
            samples[name].append(_burst(runs[name], expected[name], NUMBERS * done))
        names = names[1:] + names[:1]
    return samples


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Of samples taken in the same rounds."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])
