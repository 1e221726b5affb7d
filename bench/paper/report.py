"""The results beside the paper's figures: Markdown tables, what is missing, and the plots.

    python -m bench.paper.report [--results FILE] [--out DIR] [--json]

Writes tables.md, tables.png and inflation.png. The paper's two last rows look swapped: its RECT figures are those of
a hard set, its CONVEX figures those of an easy one. Our rectangles are held against both rows, and so are our convex
regions; what counts is the reading in which easy meets easy.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bench import readme
from bench.paper.cells import DEPTHS, DK, HASHNET, HASHNET_DK, NN, RATIOS, SCHEMES, TEACHER, Cell, plan
from bench.paper.run import RESULTS, Row, read, row_of
from bench.paper.sets import NAMES
from bench.paper.train import Recipe
from hashinfer.files import atomic_write

HERE = Path(__file__).parent
PAPER_TABLES = {8: HERE / "paper-table-1.csv", 64: HERE / "paper-table-2.csv"}
SWAPPED = {"RECT": "CONVEX", "CONVEX": "RECT"}
COMPARABLE = tuple(name for name in NAMES if not name.startswith("BG-IMG"))
"""The BG-IMG sets use other photographs than the paper's."""

Key = tuple[str, int, int, str, str]

README, PROGRAM = Path(__file__).resolve().parent.parent.parent / "README.md", "bench.paper.report"


def paper() -> dict[tuple[str, int, int, str], float]:
    """(row as printed, depth, ratio, method) -> the paper's test error in percent."""
    out = {}
    for ratio, path in PAPER_TABLES.items():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                name = row.pop("data")
                for column, text in row.items():
                    depth, method = column.split(" ")
                    out[name, int(depth[0]), ratio, method] = float(text)
    return out


def current(recipe: Recipe, path: Path) -> list[tuple[Cell, Row]]:
    """The cells of the plan that have a row under the recipe, with the row."""
    rows = read(path)
    found = ((cell, row_of(cell, rows, recipe)) for cell in plan())
    return [(cell, row) for cell, row in found if row is not None]


def errors(recipe: Recipe, path: Path) -> dict[Key, list[float]]:
    """(set, depth, ratio, method, scheme) -> test errors in percent, one for each seed; without Figure 4."""
    out: dict[Key, list[float]] = defaultdict(list)
    for cell, row in current(recipe, path):
        if not cell.inflation:
            out[cell.data, cell.depth, cell.ratio, cell.method, cell.scheme].append(float(row["test_error"]))
    return dict(out)


@dataclass(frozen=True)
class Claim:
    """One figure of the paper, of the HashNets, against the better of our two; None where not both are trained."""

    data: str
    depth: int
    ratio: int
    method: str
    theirs: float
    as_printed: float
    ours: float | None

    @property
    def held(self) -> bool | None:
        """Whether ours is at or under the paper's figure."""
        return None if self.ours is None else self.ours <= self.theirs


def mean_of(seen: dict[Key, list[float]], key: Key) -> float | None:
    """The mean over seeds, or None."""
    return statistics.fmean(seen[key]) if key in seen else None


def claims(seen: dict[Key, list[float]]) -> list[Claim]:
    """All comparable figures of the paper."""
    table = paper()
    out = []
    for depth in DEPTHS:
        for ratio in RATIOS:
            for name in COMPARABLE:
                for method in (HASHNET, HASHNET_DK):
                    theirs = table[SWAPPED.get(name, name), depth, ratio, method]
                    ours = better(seen, name, depth, ratio, method)
                    out.append(Claim(name, depth, ratio, method, theirs, table[name, depth, ratio, method], ours))
    return out


def shown(values: list[float] | None) -> str:
    """A mean, with the standard deviation where there are several seeds."""
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def table(seen: dict[Key, list[float]], depth: int, ratio: int) -> str:
    """One of the paper's four sub-tables: the paper's figures, then ours."""
    columns = [(NN, ""), (DK, ""), *((HASHNET, s) for s in SCHEMES), *((HASHNET_DK, s) for s in SCHEMES)]
    theirs = (NN, DK, HASHNET, HASHNET_DK)
    held = {(c.data, c.method): c for c in claims(seen) if (c.depth, c.ratio) == (depth, ratio)}
    figures = paper()
    heads = ["set", *(f"paper {m}" for m in theirs), "full size", *(" ".join(c).strip() for c in columns)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in NAMES:
        row = SWAPPED.get(name, name)
        cells = [name if row == name else f"{name} (paper's row {row})"]
        cells += [f"{figures[row, depth, ratio, m]:.2f}" if name in COMPARABLE else "" for m in theirs]
        cells.append(shown(seen.get((name, depth, 1, TEACHER, ""))))
        for method, scheme in columns:
            text = shown(seen.get((name, depth, ratio, method, scheme)))
            claim = held.get((name, method))
            best = claim is not None and claim.ours == mean_of(seen, (name, depth, ratio, method, scheme))
            cells.append(f"**{text}** ✓" if best and claim is not None and claim.held else text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def summary(found: list[Claim]) -> list[str]:
    """How many of the paper's figures are reached, and which are not."""
    lines = []
    for method in (HASHNET, HASHNET_DK):
        known = [c for c in found if c.method == method and c.held is not None]
        total = sum(c.method == method for c in found)
        lines.append(f"{method}: at or under the paper's in {sum(bool(c.held) for c in known)} of {len(known)} cells")
        if len(known) < total:
            lines[-1] += f" ({total - len(known)} of {total} not yet trained)"
    over = [
        f"{c.data} {c.depth}L 1/{c.ratio} {c.method} {c.ours:.2f} (paper {c.theirs:.2f})"
        for c in found
        if c.held is False
    ]
    if over:
        lines.append("Over the paper's: " + "; ".join(over))
    return lines


def better(seen: dict[Key, list[float]], name: str, depth: int, ratio: int, method: str) -> float | None:
    """The lower error of our two schemes; None where not both are trained."""
    both = [mean_of(seen, (name, depth, ratio, method, scheme)) for scheme in SCHEMES]
    found = [e for e in both if e is not None]
    return min(found) if len(found) == len(SCHEMES) else None


def readme_table(seen: dict[Key, list[float]]) -> str:
    """The trained cells, ours beside the paper's and the dense nets' of equal storage: for the README."""
    heads = ["set, layers, storage", "HashNet", "the paper's", "HashNet_DK", "the paper's", "NN", "DK"]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    by = {(c.data, c.depth, c.ratio, c.method): c for c in claims(seen)}
    for depth, ratio, name in product(DEPTHS, RATIOS, NAMES):
        ours = {method: better(seen, name, depth, ratio, method) for method in (HASHNET, HASHNET_DK)}
        if all(error is None for error in ours.values()):
            continue
        cells: list[str] = []
        for method, error in ours.items():
            claim = by.get((name, depth, ratio, method))
            over = " (over)" if claim is not None and claim.held is False else ""
            cells += [f"{number(error)}{over}", "" if claim is None else number(claim.theirs)]
        cells += [number(mean_of(seen, (name, depth, ratio, method, ""))) for method in (NN, DK)]
        lines.append(f"| {name}, {depth}L, 1/{ratio} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def number(error: float | None) -> str:
    """With two decimals, or a dash where a net is not trained."""
    return "-" if error is None else f"{error:.2f}"


def readings(found: list[Claim]) -> str:
    """The rows that look swapped, read both ways."""
    lines = [
        "| set | depth | ratio | method | ours, better of two | paper, swapped | paper, as printed |",
        "|---" * 7 + "|",
    ]
    lines += [
        f"| {c.data} | {c.depth}L | 1/{c.ratio} | {c.method} | {'' if c.ours is None else f'{c.ours:.2f}'} "
        f"| {c.theirs:.2f} | {c.as_printed:.2f} |"
        for c in found
        if c.data in SWAPPED
    ]
    return "\n".join(lines)


def inflation(recipe: Recipe, path: Path) -> list[dict[str, Any]]:
    """Figure 4: one entry a net, by virtual hidden units."""
    return [
        {
            "method": cell.method,
            "scheme": cell.scheme,
            "inflation": cell.inflation,
            "units": cell.units[1],
            "stored": int(row["stored"]),
            "test_error": float(row["test_error"]),
        }
        for cell, row in current(recipe, path)
        if cell.inflation
    ]


def inflation_table(points: list[dict[str, Any]]) -> str:
    """Figure 4 as a table."""
    lines = ["| net | virtual hidden units | stored numbers | test error, % |", "|---|---|---|---|"]
    lines += [
        f"| {p['method']} {p['scheme']} | {p['units']} ({p['inflation']} x) | {p['stored']} | {p['test_error']:.2f} |"
        for p in sorted(points, key=lambda p: (p["scheme"], p["inflation"]))
    ]
    return "\n".join(lines)


def untrained(recipe: Recipe, path: Path) -> list[Cell]:
    """Cells of the plan without a row."""
    rows = read(path)
    return [cell for cell in plan() if row_of(cell, rows, recipe) is None]


def draw_tables(seen: dict[Key, list[float]], path: Path) -> None:
    """Our errors and the paper's, one panel for each depth and ratio, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    theirs = paper()
    styles = {
        (NN, ""): ("s", "#888888", "dense net of equal storage"),
        (DK, ""): ("s", "#333333", "the same, distilled"),
        (HASHNET, "xxh32"): ("o", "#7fb2e5", "hashed, xxh32"),
        (HASHNET_DK, "xxh32"): ("o", "#1f5f9e", "hashed, xxh32, distilled"),
        (HASHNET, "dyadic"): ("D", "#f2a97e", "hashed, dyadic"),
        (HASHNET_DK, "dyadic"): ("D", "#b8480e", "hashed, dyadic, distilled"),
    }
    figure, panels = pyplot.subplots(2, 2, figsize=(12, 8), sharex=True, constrained_layout=True)
    for panels_of_depth, depth in zip(panels, DEPTHS, strict=True):
        for axes, ratio in zip(panels_of_depth, RATIOS, strict=True):
            for k, ((method, scheme), (marker, colour, label)) in enumerate(styles.items()):
                at = [n + 0.11 * (k - 2.5) for n in range(len(NAMES))]
                values = [mean_of(seen, (name, depth, ratio, method, scheme)) for name in NAMES]
                points = [(x, v) for x, v in zip(at, values, strict=True) if v is not None]
                axes.plot(*zip(*points, strict=True) if points else ([], []), marker, color=colour, label=label)
            for method, dash in ((HASHNET, "-"), (HASHNET_DK, ":")):
                for n, name in enumerate(NAMES):
                    if name in COMPARABLE:
                        level = theirs[SWAPPED.get(name, name), depth, ratio, method]
                        text = f"paper's {method}" if n == 0 else None
                        axes.plot([n - 0.4, n + 0.4], [level, level], dash, color="#2a7a3f", linewidth=1.5, label=text)
            axes.set_yscale("log")
            axes.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
            axes.minorticks_off()
            axes.grid(axis="y", alpha=0.3)
            axes.set_xticks(range(len(NAMES)), NAMES, rotation=30)
            axes.set_title(f"{depth} layers, 1/{ratio} of the storage")
            axes.set_ylabel("test error, %")
    panels[0][0].legend(fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def draw_inflation(points: list[dict[str, Any]], path: Path) -> None:
    """Test error against virtual hidden units at fixed storage, as a PNG."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4.2), constrained_layout=True)
    for scheme, style in (("xxh32", "o-"), ("dyadic", "D-")):
        line = sorted((p["units"], p["test_error"]) for p in points if p["scheme"] == scheme)
        if line:
            axes.plot(*zip(*line, strict=True), style, label=f"hashed, {scheme}")
    for p in points:
        if not p["scheme"]:
            axes.axhline(p["test_error"], color="#555555", linestyle="--", label=f"dense, {p['units']} hidden units")
            axes.set_title(f"MNIST, one hidden layer, {p['stored']:,} stored numbers at most")
    axes.set_xscale("log", base=2)
    units = sorted({p["units"] for p in points})
    axes.set_xticks(units, [str(u) for u in units])
    axes.set_xlabel("virtual hidden units")
    axes.set_ylabel("test error, %")
    axes.grid(alpha=0.3)
    if points:
        axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


def text_of(seen: dict[Key, list[float]], points: list[dict[str, Any]], left: list[Cell]) -> str:
    """The whole report in Markdown."""
    found = claims(seen)
    parts = [
        "Test error in percent. ✓: the better of our two is at or under the paper's figure. ±: deviation over seeds.",
        "\n".join(f"- {line}" for line in summary(found)),
    ]
    for depth in DEPTHS:
        for ratio in RATIOS:
            parts += [f"### {depth} layers, 1/{ratio} of the storage", table(seen, depth, ratio)]
    parts += ["### The two rows that look swapped", readings(found)]
    if points:
        parts += ["### Inflation at fixed storage (the paper's Figure 4)", inflation_table(points)]
    if left:
        names = defaultdict(list)
        for cell in left:
            what = f"inflation, seed {cell.seed}" if cell.inflation else f"{cell.data} {cell.depth}L, seed {cell.seed}"
            names[what].append(cell)
        listed = "; ".join(f"{what}: {len(cells)}" for what, cells in names.items())
        parts += [f"### Not yet trained: {len(left)} of {len(plan())} nets", listed]
    return "\n\n".join([*parts, f"{Recipe()}"]) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=RESULTS.parent)
    parser.add_argument("--json", action="store_true", help="print the data behind the tables; write nothing")
    options = parser.parse_args()
    recipe = Recipe()
    try:
        seen, points = errors(recipe, options.results), inflation(recipe, options.results)
        left = untrained(recipe, options.results)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    if options.json:
        data = {
            "recipe": vars(recipe),
            "claims": [{**vars(c), "held": c.held} for c in claims(seen)],
            "errors": [{"cell": key, "test_error": values} for key, values in seen.items()],
            "inflation": points,
            "missing": [cell.name for cell in left],
        }
        json.dump(data, sys.stdout, indent=2)
        print()
        return
    text = text_of(seen, points, left)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out / "tables.md") as file:
        file.write(text.encode())
    draw_tables(seen, options.out / "tables.png")
    draw_inflation(points, options.out / "inflation.png")
    if options.out == RESULTS.parent:
        readme.update(README, readme_table(seen), PROGRAM)


if __name__ == "__main__":
    main()
