"""The figures as pictures: dense engines in grey, hashed nets in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench import growth
from bench.peers import FP32, INT8
from bench.tables import duration, size

DYADIC, RUNS, PAPER = "#1b7f5c", "#2b6cb0", "#c05621"
COLOURS = {"dyadic": DYADIC, "xxh32/16": RUNS, "xxh32/1": PAPER}
DENSE = {FP32: ("#4a5568", "-", "onnxruntime, dense fp32"), INT8: ("#9aa5b1", "-", "onnxruntime, dense int8")}
SHOWN_COMPRESSION = 64
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 130,
}


def draw(parts: dict[str, Any], folder: Path) -> list[Path]:
    """A picture for each part there is; returns the files written."""
    made = []
    with mpl.rc_context(STYLE):
        for name, function in (("nets", _nets), ("memory", _memory), ("growth", _growth), ("kernels", _kernels)):
            if name in parts:
                path = folder / f"{name}.png"
                figure = function(parts[name])
                figure.savefig(path)
                plt.close(figure)
                made.append(path)
    return made


def _nets(part: dict[str, Any]) -> Any:
    """Time a row against the batch, one panel a net, one thread."""
    nets = part["nets"]
    columns = min(3, len(nets))
    lines = -(-len(nets) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(3.9 * columns, 2.9 * lines + 0.5), squeeze=False)
    for axis in grid.flat[len(nets) :]:
        axis.remove()
    handles: dict[str, Any] = {}
    for axis, net in zip(grid.flat, nets, strict=False):
        cases = [case for case in net["cases"] if case["threads"] == 1]
        for engine, (colour, style, label) in DENSE.items():
            handles[label] = _line(axis, cases, engine, colour, style, "s")
        for label, about in net["variants"].items():
            shown = about["compression"] == SHOWN_COMPRESSION or len(net["variants"]) == 1
            if shown:
                name = f"hashinfer, {_scheme_name(about['scheme'])}"
                handles[name] = _line(axis, cases, label, COLOURS[about["scheme"]], "-", "o")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks([case["batch"] for case in cases], [str(case["batch"]) for case in cases])
        axis.xaxis.set_minor_locator(NullLocator())
        _times(axis.yaxis)
        axis.grid(axis="y", color="#e2e8f0", linewidth=0.7)
        only = next(iter(net["variants"].values()))["compression"]
        compression = only if len(net["variants"]) == 1 else SHOWN_COMPRESSION
        axis.set_title(f"{net['net']}, 1/{compression}")
        axis.set_xlabel("batch")
    for row in grid:
        row[0].set_ylabel("time a row")
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
    figure.suptitle(f"One thread, median. {part['environment']['cpu']}", fontsize=9, x=0.01, ha="left")
    return figure


def _line(axis: Axes, cases: Sequence[dict[str, Any]], engine: str, colour: str, style: str, marker: str) -> Any:
    seen = [(case["batch"], case["us"][engine]) for case in cases if engine in case["us"]]
    batches = [b for b, _ in seen]
    middle = [s["median"] / b for b, s in seen]
    low = [s["quartiles"][0] / b for b, s in seen]
    high = [s["quartiles"][1] / b for b, s in seen]
    axis.fill_between(batches, low, high, color=colour, alpha=0.18, linewidth=0)
    return axis.plot(batches, middle, color=colour, linestyle=style, marker=marker, markersize=4, linewidth=1.6)[0]


def _times(axis: Axis) -> None:
    axis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.set_major_formatter(FuncFormatter(lambda us, _: duration(us)))
    axis.set_minor_locator(NullLocator())


def _sizes(axis: Axis) -> None:
    axis.set_major_locator(FixedLocator([2.0**k for k in range(10, 40, 3)]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: size(v)))
    axis.set_minor_locator(NullLocator())


def _scheme_name(scheme: str) -> str:
    return {"dyadic": "dyadic", "xxh32/16": "xxh32 block 16", "xxh32/1": "xxh32 block 1 (the paper's)"}[scheme]


def _memory(part: dict[str, Any]) -> Any:
    """File and memory over the engine floor of each net, dense beside hashed."""
    nets: dict[str, dict[str, Any]] = {}
    for model in part["models"]:
        bars = nets.setdefault(model["net"], {})
        for engine, figures in model["engines"].items():
            name = f"hashinfer, {model['variant'].rpartition(' ')[0]}" if engine == "hashinfer" else engine
            bars[name] = figures
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 0.55 + 0.78 * len(nets)), sharey=True)
    colours = {f"hashinfer, {scheme}": colour for scheme, colour in COLOURS.items()}
    colours |= {engine: colour for engine, (colour, _, _) in DENSE.items()}
    keys = (("file_bytes", "file"), ("resident_after_run", "after load and a run"), ("peak_over_floor", "peak"))
    handles: dict[str, Any] = {}
    for axis, (key, title) in zip(axes, keys, strict=True):
        for row, found in enumerate(nets.values()):
            bars = dict(sorted(found.items()))
            height = 0.8 / len(bars)
            for k, (name, figures) in enumerate(bars.items()):
                at = row - 0.4 + height * (k + 0.5)
                bar = axis.barh(-at, max(figures[key], 1), 0.92 * height, color=colours[name])
                axis.text(max(figures[key], 1), -at, " " + size(figures[key]), va="center", fontsize=7)
                handles[name] = bar
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        axis.set_xlim(low / 2, high * 8)
        _sizes(axis.xaxis)
        axis.set_title(title if key == "file_bytes" else f"memory over the engine floor, {title}")
    axes[0].set_yticks([-row for row in range(len(nets))], list(nets))
    axes[0].tick_params(axis="y", length=0)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    return figure


def _growth(part: dict[str, Any]) -> Any:
    """Time and bytes against the width of a square layer."""
    entries = part["widths"]
    widths = [entry["width"] for entry in entries]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    curves = {
        name: (DYADIC if name.startswith("dyadic") else RUNS, "--" if "K =" in name else "-") for name in growth.CURVES
    }
    for name, (colour, style) in {FP32: (DENSE[FP32][0], "-"), **curves}.items():
        label = DENSE[FP32][2] if name == FP32 else name
        marker = "s" if name == FP32 else "o"
        look: dict[str, Any] = {
            "color": colour,
            "linestyle": style,
            "marker": marker,
            "markersize": 4,
            "linewidth": 1.6,
        }
        left.plot(widths, [entry["us"][name]["median"] for entry in entries], label=label, **look)
        right.plot(widths, [entry["bytes"][name] for entry in entries], label=label, **look)
    for axis, title, ticks in (
        (left, "time of one input through an n x n layer", _times),
        (right, "bytes: weights, spectra, buffers", _sizes),
    ):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(widths, [str(w) for w in widths])
        ticks(axis.yaxis)
        axis.grid(axis="y", color="#e2e8f0", linewidth=0.7)
        axis.set_xlabel("n")
        axis.set_title(title)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _kernels(part: dict[str, Any]) -> Any:
    """The rate of the planner's picks, a panel a scheme; a cell is framed where another kernel is faster."""
    cases = [entry for entry in part["cases"] if not entry["zeros"]]
    schemes = list(dict.fromkeys(entry["scheme"] for entry in cases))
    kinds = list(dict.fromkeys((*entry["shape"], entry["compression"]) for entry in cases))
    counts = sorted({entry["rows"] for entry in cases})
    figure, axes = plt.subplots(
        1, len(schemes), figsize=(1.7 + 3.3 * len(schemes), 1.3 + 0.3 * len(kinds)), sharey=True, squeeze=False
    )
    rates = [_rate(entry) for entry in cases if _rate(entry)]
    norm = mpl.colors.LogNorm(min(rates), max(rates))
    colours = mpl.colormaps["YlGnBu"]
    for axis, scheme in zip(axes[0], schemes, strict=True):
        for entry in (entry for entry in cases if entry["scheme"] == scheme):
            column, row = counts.index(entry["rows"]), kinds.index((*entry["shape"], entry["compression"]))
            rate = _rate(entry)
            over = entry["picked_over_fastest"]
            fill = colours(norm(rate)) if rate else "#f1f5f9"
            axis.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=fill, edgecolor="white"))
            if over is not None and over > 1.1:
                frame = {"facecolor": "none", "edgecolor": PAPER, "linewidth": 1.8}
                axis.add_patch(plt.Rectangle((column + 0.04, row + 0.06), 0.92, 0.88, **frame))
            dark = rate is not None and norm(rate) > 0.55
            text = "left out" if not rate else f"{rate:.3g}" if rate < 1000 else f"{rate:,.0f}"
            axis.text(
                column + 0.5, row + 0.5, text, ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        axis.set_xlim(0, len(counts))
        axis.set_ylim(len(kinds), 0)
        axis.set_xticks([k + 0.5 for k in range(len(counts))], [str(c) for c in counts])
        axis.set_yticks([k + 0.5 for k in range(len(kinds))], [f"{m} x {n}, 1/{c}" for m, n, c in kinds])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(_scheme_name(scheme))
        axis.set_xlabel("rows of x")
    text = "The planner's picks in G virtual weights a second, one thread, no zero inputs."
    figure.suptitle(f"{text} Framed: another is over 10 % faster.", fontsize=9, x=0.01, ha="left")
    return figure


def _rate(entry: dict[str, Any]) -> float | None:
    kernel = entry["kernels"].get(entry["picked"])
    return kernel["virtual_per_second"] / 1e9 if kernel else None
