"""What a memory budget buys: the time of a run against the bytes of the matrices that it holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import click
import numpy as np

from hashinfer.cli.memory import readable
from hashinfer.cli.shapes import random_array
from hashinfer.errors import UnsupportedError
from hashinfer.files import atomic_write

RUNS, ROUNDS = 5, 15

budget_option = click.option(
    "--memory-budget",
    metavar="BYTES",
    help="Hold weight matrices as they are within so much memory: bytes, 8MiB, 10% (of what is free).",
)


def trade(model: str, threads: int | None, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Points from no budget up to the one that holds every matrix worth it: its bytes, and the median time of a run.

    Random inputs of these shapes; the budgets take turns.
    """
    from hashinfer.plan.budget import offers  # noqa: PLC0415
    from hashinfer.session.session import InferenceSession  # noqa: PLC0415

    bare, rng = InferenceSession(model, threads=threads), np.random.default_rng(0)
    feed = {v.name: random_array(rng, v.type, shapes[v.name]) for v in bare.get_inputs()}
    budgets = np.cumsum([offer.bytes for offer in offers(bare.plan())], dtype=np.int64)
    sessions = [bare, *(InferenceSession(model, threads=threads, memory_budget=int(b)) for b in budgets)]
    found: list[list[float]] = [[] for _ in sessions]
    for made in sessions:
        made.run(None, feed)
    for _ in range(ROUNDS):
        for times, made in zip(found, sessions, strict=True):
            started = time.perf_counter()
            for _ in range(RUNS):
                made.run(None, feed)
            times.append((time.perf_counter() - started) / RUNS)
    points = [
        {"bytes": made.materialised_bytes, "us": 1e6 * statistics.median(times)}
        for made, times in zip(sessions, found, strict=True)
    ]
    for made in sessions:
        made.close()
    return points


def show(points: Sequence[Mapping[str, Any]]) -> None:
    """A line for each budget."""
    print("memory budget  time of a run")
    for point in points:
        print(f"{readable(point['bytes']):>13}  {point['us']:.1f} us")


def need_matplotlib() -> None:
    """Raise UnsupportedError where pictures cannot be drawn."""
    if find_spec("matplotlib") is None:
        raise UnsupportedError("pictures need matplotlib: pip install matplotlib")


def draw(points: Sequence[Mapping[str, Any]], title: str, path: str) -> None:
    """Time against bytes, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.step([p["bytes"] / 2**20 for p in points], [p["us"] for p in points], "o-", where="post", color="#1b7f5c")
    axes.set_xlabel("memory budget, MiB")
    axes.set_ylabel("time of a run, us")
    axes.set_ylim(bottom=0)
    axes.set_title(title, loc="left", fontsize=9)
    axes.grid(alpha=0.3)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
