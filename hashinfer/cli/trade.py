"""What a memory budget buys: the time of a run against the bytes of the matrices that it holds."""

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import click
import numpy as np

from hashinfer.cli.memory import readable
from hashinfer.cli.shapes import random_inputs
from hashinfer.cli.timing import alternate
from hashinfer.errors import UnsupportedError
from hashinfer.files import atomic_write

SECONDS = 0.2
"""For each budget."""

budget_option = click.option(
    "--memory-budget",
    metavar="BYTES",
    help="Hold weight matrices as they are within so much memory: bytes, 8MiB, 10% (of what is free).",
)


def trade(model: str, threads: int | None, shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    """Points from no budget up to the one that holds every matrix worth it: its bytes, and the median time of a run.

    Random inputs of these shapes; the budgets take turns.
    """
    from hashinfer.plan.budget import offers
    from hashinfer.session.session import InferenceSession

    bare = InferenceSession(model, threads=threads)
    feed = random_inputs(bare.get_inputs(), shapes)
    budgets = np.cumsum([offer.bytes for offer in offers(bare.plan())], dtype=np.int64)
    sessions = [bare, *(InferenceSession(model, threads=threads, memory_budget=int(b)) for b in budgets)]
    runs = {str(k): partial(made.run, None, feed) for k, made in enumerate(sessions)}
    found = alternate(runs, SECONDS * len(runs)).values()
    points = [
        {"bytes": made.materialised_bytes, "us": times.median / 1000}
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

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
