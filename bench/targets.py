"""The figures to reach, and what was measured: nothing here is typed in but the targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.kernels import GOOD_ENOUGH
from bench.peers import FP32, INT8

MIB = 2**20
TWO_THREADS, LONG_US = 1.6, 200.0
WHOLE = 0.95
"""Share of as many single threads' work that threads must do which share nothing, for their processors to be free."""
OVERHEAD_US = 10.0
AFTER_LOAD, AT_PEAK = 8 * MIB, 16 * MIB
WIDE = "4096-4096-4096-4096-10"


@dataclass(frozen=True, slots=True)
class Speed:
    """How many times faster than a peer on one thread; None where the figure is only reported."""

    net: str
    variant: str
    batch: int
    fp32: float | None
    int8: float | None


SPEEDS = (
    Speed("784-1000-1000-10", "dyadic 64", 1, 12, 2.5),
    Speed("784-1000-1000-10", "dyadic 64", 64, 1.3, None),
    Speed("784-1000-10", "dyadic 8", 1, 4, 1),
    Speed(WIDE, "dyadic 64", 1, 30, 5),
    Speed(WIDE, "dyadic 512", 1, 100, 15),
    Speed(WIDE, "dyadic 64", 64, 2.5, None),
    Speed("784-1000-1000-10", "xxh32/16 64", 1, 4, None),
    Speed("784-1000-1000-10", "xxh32/1 64", 1, 1, None),
    Speed("784-1000-1000-10", "xxh32/1 64", 64, 0.6, None),
    Speed("embedding", "xxh32/16 1000", 64, 1, None),
)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line: what, the target and the measured value in words, and whether it was reached (None: only reported)."""

    what: str
    target: str
    measured: str
    reached: bool | None

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return {"what": self.what, "target": self.target, "measured": self.measured, "reached": self.reached}


def figures(parts: dict[str, Any]) -> list[Figure]:
    """Every figure that the parts measured so far say something about."""
    out: list[Figure] = []
    nets = {net["net"]: net for net in parts.get("nets", {}).get("nets", [])}
    for speed in SPEEDS:
        case = _case(nets.get(speed.net), speed.batch, 1)
        faster = (case or {}).get("faster", {}).get(speed.variant, {})
        for peer, target in ((FP32, speed.fp32), (INT8, speed.int8)):
            if peer in faster:
                out.append(_faster(speed, peer, target, faster[peer]))
    if nets:
        out += _threads(nets)
    if "overhead" in parts.get("nets", {}):
        us = parts["nets"]["overhead"]["run"]["median"]
        out.append(Figure("a run of a one-node graph", f"under {OVERHEAD_US:g} us", f"{us:.1f} us", us < OVERHEAD_US))
    out += _memory(parts.get("memory", {}).get("models", []))
    if "kernels" in parts:
        out += _picks(parts["kernels"])
    return out


def _case(net: dict[str, Any] | None, batch: int, threads: int) -> dict[str, Any] | None:
    cases = net["cases"] if net else []
    return next((c for c in cases if (c["batch"], c["threads"]) == (batch, threads)), None)


def _faster(speed: Speed, peer: str, target: float | None, spread: dict[str, Any]) -> Figure:
    low, high = spread["quartiles"]
    return Figure(
        f"{speed.net}, {speed.variant}, batch {speed.batch}, against {peer}",
        "report" if target is None else f"{target:g} x",
        f"{spread['median']:.2f} x ({low:.2f} to {high:.2f})",
        None if target is None else spread["median"] >= target,
    )


@dataclass(frozen=True, slots=True)
class _Gain:
    """Of one variant and batch with more threads than one.

    alone: too short to share, so it runs as with one thread. whole: the machine gave every thread a processor's work.
    """

    median: float
    high: float
    alone: bool
    long: bool
    whole: bool
    where: str


def _gains(nets: dict[str, Any]) -> Iterator[_Gain]:
    for net in nets.values():
        for case in net["cases"]:
            whole = (case.get("processors_together") or 0.0) >= WHOLE * case["threads"]
            for variant, gain in case["more_threads"].items():
                where = f"{net['net']}, {variant}, batch {case['batch']}"
                long = case["us"][variant]["median"] * gain["median"] > LONG_US
                yield _Gain(gain["median"], gain["quartiles"][1], variant in case["alone"], long, whole, where)


def _threads(nets: dict[str, Any]) -> list[Figure]:
    """Of all cases with two threads: the least gain of a long run, and how many shared runs are slower than on one.

    Both also for those alone during which the machine's processors were whole.
    """
    found = list(_gains(nets))
    out = []
    for gains, when in ((found, ""), ([g for g in found if g.whole], f"; both processors {100 * WHOLE:.0f} % free")):
        long = [g for g in gains if g.long]
        if long:
            good, least = sum(g.median >= TWO_THREADS for g in long), min(long, key=lambda g: g.median)
            measured = f"{good} of {len(long)}; the least {least.median:.2f} x: {least.where}"
            what = f"two threads, runs over {LONG_US:g} us{when}"
            out.append(Figure(what, f"{TWO_THREADS:g} x one thread", measured, good == len(long)))
        shared = [g for g in gains if not g.alone]
        if shared:
            slower = [g for g in shared if g.high < 1]
            measured = f"{len(slower)} of {len(shared)} slower (upper quartile below 1)"
            if slower:
                worst = min(slower, key=lambda g: g.median)
                measured += f"; the worst {worst.median:.2f} x: {worst.where}"
            if len(gains) > len(shared):
                measured += f"; {len(gains) - len(shared)} more are too short to share and run on one thread"
            out.append(Figure(f"two threads, all shared runs{when}", "never slower than one", measured, not slower))
    return out


def _memory(models: list[dict[str, Any]]) -> list[Figure]:
    out = []
    for model in models:
        ours = model["engines"].get("hashinfer")
        if model["net"] == WIDE and model["variant"] == "dyadic 64" and ours:
            for key, what, limit in (
                ("resident_after_load", "after load", AFTER_LOAD),
                ("peak_over_floor", "at the peak of load and first run", AT_PEAK),
                ("another_session", "of a second session, loaded and run", AFTER_LOAD),
            ):
                out.append(
                    Figure(
                        f"{WIDE}, dyadic 64, memory over the engine floor {what}",
                        f"at most {limit // MIB} MiB",
                        f"{ours[key] / MIB:.1f} MiB",
                        ours[key] <= limit,
                    )
                )
    return out


def _picks(part: dict[str, Any]) -> list[Figure]:
    out = []
    for name, found in part["verdicts"].items():
        if found["worst"] is None:
            continue
        case = found["worst_case"]
        where = f"{case['shape'][0]} x {case['shape'][1]}, {case['scheme']} {case['compression']}, {case['rows']} rows"
        out.append(
            Figure(
                f"the planner's pick over the fastest kernel, {name}",
                f"within {100 * (GOOD_ENOUGH - 1):.0f} %",
                f"{found['over']} of {found['judged']} over; the worst {found['worst']:.2f} x: {where}",
                found["over"] == 0,
            )
        )
    return out
