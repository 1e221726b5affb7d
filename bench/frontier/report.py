"""The points as tables and pictures: test error against stored bytes, and against the time of one row.

    python -m bench.frontier.report [--results FILE] [--times FILE] [--out DIR] [--json]

Writes frontier.md, a picture of each data set, and prints the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.frontier.points import DENSE, FEWER_BITS, HASHED, LOW_RANK, MAGNITUDE, OBD, RECIPE, SMALL, points
from bench.frontier.run import RESULTS, SETS, Row, missing, read
from bench.tables import size, table
from hashinfer.files import atomic_write

TIMES = RESULTS.parent / "latency.json"
COLOURS = {
    "hashed, dyadic": "#1b7f5c",
    "hashed, xxh32": "#c05621",
    SMALL: "#4a5568",
    LOW_RANK: "#2b6cb0",
    MAGNITUDE: "#b7791f",
    OBD: "#97266d",
    FEWER_BITS: "#718096",
    DENSE: "#000000",
}
MARKERS = {"float32": "o", "float16": "s", "int8": "D", "int4": "v", "int2": "^"}
ABOUT = f"""784-1000-10 and what its storage shrinks to; every net trained for {RECIPE.effort:g} / images^0.4 epochs
by the recipe of bench/paper, but without adversarial training. Test error in percent, one seed. Bytes: weights,
biases, scales, and the indices of what pruning keeps. A weight vector of 4 bits is here to compare; the format has
float32, float16 and int8. Time: one row, one thread, hashed nets in hashinfer, dense forms in onnxruntime; a pruned
matrix runs as a full one there, 2 bits as 4.
"""
COLUMNS = ("family", "factor, rank or bits", "numbers as", "bytes", "test error, %", "one row, us")
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
MARKS_BYTES = (2**12, 2**14, 2**16, 2**18, 2**20)


def family(row: Row) -> str:
    """As the legend has it."""
    return f"{row['family']}, {row['scheme']}" if row["scheme"] else row["family"]


def best(rows: list[Row]) -> list[Row]:
    """The rows that no other one beats in both bytes and error, smallest first."""
    out: list[Row] = []
    for row in sorted(rows, key=lambda r: (int(r["bytes"]), float(r["test_error"]))):
        if not out or float(row["test_error"]) < float(out[-1]["test_error"]):
            out.append(row)
    return out


def winners(rows: list[Row]) -> list[tuple[str, ...]]:
    """For each size, the least error that each family reaches within it, and how."""
    names = [name for name in COLOURS if name != DENSE]
    out = []
    for limit in MARKS_BYTES:
        fits = [row for row in rows if int(row["bytes"]) <= limit]
        cells = []
        for name in names:
            mine = [row for row in fits if family(row) == name]
            cells.append(min(mine, key=lambda r: float(r["test_error"])) if mine else None)
        least = min((float(c["test_error"]) for c in cells if c), default=None)
        out.append((size(limit), *(_winner(c, least) for c in cells)))
    return out


def _winner(row: Row | None, least: float | None) -> str:
    if row is None:
        return "-"
    error = float(row["test_error"])
    text = f"{error:.2f}"
    how = ", ".join(filter(None, (row["level"], row["weights"], "distilled" if row["distilled"] else "")))
    return f"**{text}** ({how})" if error == least else f"{text} ({how})"


def times(path: Path) -> dict[tuple[str, str, str, str], float]:
    """(family, scheme, level, weights) -> microseconds of one row, with what stands in for what was not timed."""
    if not path.exists():
        return {}
    found = {
        (t["family"], t["scheme"], t["level"], t["weights"]): t["us"]["median"]
        for t in json.loads(path.read_text())["times"]
    }
    dense = {
        kind: found[DENSE, "", "1", kind] for kind in ("float32", "int8", "int4") if (DENSE, "", "1", kind) in found
    }
    for point in points():
        level = str(point.level)
        for kind in point.formats:
            key = (point.family, point.scheme, level, kind)
            if key in found:
                continue
            if point.family == HASHED:
                found[key] = found[point.family, point.scheme, level, "int8"]
            elif point.family in (MAGNITUDE, OBD, FEWER_BITS, DENSE):
                found[key] = dense.get("int4" if kind == "int2" else kind, dense["float32"])
            else:
                found[key] = found[point.family, point.scheme, level, "float32"]
    return found


def text_of(rows: list[Row], spent: dict[tuple[str, str, str, str], float]) -> str:
    """The whole report in Markdown."""
    parts = [ABOUT]
    for name in SETS:
        mine = [row for row in rows if row["set"] == name]
        if not mine:
            continue
        left = missing(name, rows)
        parts.append(f"### {name}" + (f" ({len(left)} nets not trained yet)" if left else ""))
        names = [f for f in COLOURS if f != DENSE]
        parts.append("The least error within so many bytes, and where: compression factor, rank or bits, and format.")
        parts.append(table(("bytes at most", *names), winners(mine)))
        lines = []
        for row in sorted(mine, key=lambda r: int(r["bytes"])):
            time = spent.get((row["family"], row["scheme"], row["level"], row["weights"]))
            how = " distilled" if row["distilled"] else ""
            lines.append(
                (
                    family(row) + how,
                    row["level"],
                    row["weights"],
                    row["bytes"],
                    f"{float(row['test_error']):.2f}",
                    "" if time is None else f"{time:.1f}",
                )
            )
        parts.append("All points:")
        parts.append(
            table(("family", "factor, rank or bits", "numbers as", "bytes", "test error, %", "one row, us"), lines)
        )
    return "\n\n".join(parts) + "\n"


def draw(name: str, rows: list[Row], spent: dict[tuple[str, str, str, str], float], path: Path) -> None:
    """Error against bytes, and against time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullLocator

    with mpl.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 4.6), constrained_layout=True, sharey=True)
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            groups[family(row)].append(row)
        for label, group in groups.items():
            for axes, place in ((left, lambda r: int(r["bytes"])), (right, lambda r: _time(r, spent))):
                for row in group:
                    at = place(row)
                    if at is not None:
                        filled = COLOURS[label] if row["distilled"] else "none"
                        axes.plot(
                            at,
                            float(row["test_error"]),
                            MARKERS[row["weights"]],
                            color=COLOURS[label],
                            mfc=filled,
                            ms=5,
                        )
            line = best(group)
            left.plot(
                [int(r["bytes"]) for r in line], [float(r["test_error"]) for r in line], color=COLOURS[label], lw=1
            )
        left.set_xlabel("stored bytes")
        left.set_ylabel("test error, %")
        left.set_yscale("log")
        right.set_xlabel("time of one row, us: hashed in hashinfer, dense forms in onnxruntime")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.grid(alpha=0.25, which="both")
        left.set_xticks([2.0**k for k in range(10, 23, 2)], minor=False)
        left.xaxis.set_minor_locator(NullLocator())
        left.xaxis.set_major_formatter(FuncFormatter(lambda v, _: size(v)))
        for axis in (left.yaxis, right.xaxis):
            axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            axis.set_minor_formatter(FuncFormatter(lambda v, _: f"{v:g}" if f"{v:e}"[0] in "25" else ""))
        handles = [Line2D([], [], color=c, label=k) for k, c in COLOURS.items() if k in groups]
        handles += [Line2D([], [], color="#000000", marker=m, ls="", mfc="none", label=k) for k, m in MARKERS.items()]
        handles.append(Line2D([], [], color="#000000", marker="o", ls="", label="filled: distilled"))
        figure.legend(handles=handles, fontsize=8, loc="outside right upper")
        left.set_title(f"{name}: lines join the best points of a family", loc="left")
        with atomic_write(path) as file:
            figure.savefig(file, format="png", dpi=100)
        pyplot.close(figure)


def _time(row: Row, spent: dict[tuple[str, str, str, str], float]) -> Any:
    return spent.get((row["family"], row["scheme"], row["level"], row["weights"]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--times", type=Path, default=TIMES)
    parser.add_argument("--out", type=Path, default=RESULTS.parent)
    parser.add_argument("--json", action="store_true", help="print the data behind the tables; write nothing")
    options = parser.parse_args()
    rows, spent = read(options.results), times(options.times)
    if options.json:
        timed = [{**row, "us": _time(row, spent)} for row in rows]
        json.dump(timed, sys.stdout, indent=1)
        print()
        return
    text = text_of(rows, spent)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out / "frontier.md") as file:
        file.write(text.encode())
    for name in SETS:
        mine = [row for row in rows if row["set"] == name]
        if mine:
            draw(name, mine, spent, options.out / f"{name.lower()}.png")


if __name__ == "__main__":
    main()
