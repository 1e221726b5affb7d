"""Train what the frontier shows and has no row yet, one net after the other.

    python -m bench.frontier.run --data DIR --cache DIR --runs DIR [--sets MNIST ROT] [--only TEXT] [--limit N] [--list]
    python -m bench.frontier.run --choose ...

DIR of --data holds MNIST's four files; --cache keeps the made sets, --runs the trained dense nets and checkpoints.
Every net is trained by the same recipe for the same number of epochs, on training and validation images together, and
its test error computed once for each format that its numbers are rounded to. Families that start from the dense net
fine-tune it for as many epochs; distilled nets learn from it. --choose compares learning rates for the former on
validation images, test images unread. Stopped at any point, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import os
import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import torch

from bench.frontier import forms
from bench.frontier.points import (
    DENSE,
    FEWER_BITS,
    FULL,
    LOW_RANK,
    MAGNITUDE,
    RATES,
    RECIPE,
    TUNED,
    UNITS,
    Point,
    points,
)
from bench.paper.nets import Stack
from bench.paper.run import terminable
from bench.paper.sets import DataSet, load
from bench.paper.train import Run, Scale, error_percent, fit, logits_of, save, tensor
from hashinfer.files import atomic_write

HERE = Path(__file__).parent
RESULTS, CHOICES = HERE / "results" / "results.csv", HERE / "results" / "rates.csv"
SETS = ("ROT", "MNIST")
KEY = ("set", "family", "scheme", "level", "distilled")
FIELDS = (*KEY, "weights", "bytes", "numbers", "test_error", "epochs", "seconds")
CHOICE_FIELDS = ("set", "family", "level", "rate", "valid_error", "epochs")
CHOSEN_ON = (Point(LOW_RANK, 8), Point(MAGNITUDE, 16), Point(FEWER_BITS, 4))
Row = dict[str, str]


def read(path: Path) -> list[Row]:
    """The rows of a results file; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, fields: tuple[str, ...], rows: list[Row]) -> None:
    """All rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = [*read(path), *rows]
    with atomic_write(path) as file:
        lines = [",".join(fields), *(",".join(row[f] for f in fields) for row in whole)]
        file.write(("\n".join(lines) + "\n").encode())


def key(name: str, point: Point) -> Row:
    """The fields of a row that say which net it is of."""
    return {
        "set": name,
        "family": point.family,
        "scheme": point.scheme,
        "level": str(point.level),
        "distilled": "yes" if point.distilled else "",
    }


def missing(name: str, rows: list[Row], only: str = "") -> list[Point]:
    """The points of a data set that have no row."""
    done = [{k: row[k] for k in KEY} for row in rows]
    return [p for p in points() if key(name, p) not in done and only in p.name]


class Trainer:
    """Trains the points of one data set; keeps the dense net in a folder."""

    def __init__(self, data: DataSet, name: str, runs: Path, held_out: int = 0) -> None:
        """held_out: training images that are left out, from the end."""
        count = len(data.image) - held_out
        self.scale = Scale.of(data.image[:count])
        self.x, self.label = self.scale.inputs(data.image), tensor(data.label)
        self.data, self.name, self.runs, self.count = data, name, runs, count
        self.precision = getattr(torch, RECIPE.precision)

    def dense(self) -> Stack:
        """The trained dense net, from the folder where it is there."""
        path = self.runs / f"frontier-{self.name.lower()}-{self.count}-dense.pt"
        if path.exists():
            net = forms.dense(UNITS)
            net.load_state_dict(torch.load(path, weights_only=True))
            return net.eval()
        net = self.train(Point(DENSE))[0]
        save(path, net.state_dict())
        return net

    def train(self, point: Point, rate: float | None = None) -> tuple[Stack, float, int]:
        """(a trained net, seconds, epochs)."""
        base = self.dense() if point.family in TUNED or point.distilled else None
        x, label = self.x[: self.count], self.label[: self.count]
        net, mean = point.make(base, x), point.make(base, x)
        recipe = dataclasses.replace(RECIPE, lr=point.rate(RECIPE) if rate is None else rate)
        epochs, factor = recipe.epochs(len(x), self.name), max(1.0, FULL / numbers_of(net))
        kept = self.runs / f"frontier-{self.name.lower()}-{self.count}-{point.name}-{recipe.lr}.checkpoint"
        identity = {"point": point.name, "set": self.name, "images": len(x), "lr": recipe.lr, "effort": recipe.effort}
        run = Run(1, epochs, recipe.drops_at(factor, distilled=point.distilled), identity, kept)
        teacher = deepcopy(base).narrow(self.precision) if point.distilled and base is not None else None
        seconds = fit(net, mean, recipe, run, x, label, teacher)
        kept.unlink(missing_ok=True)
        return mean, seconds, epochs

    def rows(self, point: Point) -> list[Row]:
        """Train one point; a row for each of its formats."""
        if point.family == DENSE:
            net, seconds, epochs = self.dense(), 0.0, RECIPE.epochs(self.count, self.name)
        else:
            net, seconds, epochs = self.train(point)
        x, label = self.scale.inputs(self.data.test_image), tensor(self.data.test_label)
        layers = forms.stored(net)
        out = []
        for kind in point.formats:
            copy = deepcopy(net)
            forms.rounded_copy(copy, kind)
            out.append(
                {
                    **key(self.name, point),
                    "weights": kind,
                    "bytes": str(sum(layer.size(kind) for layer in layers)),
                    "numbers": str(numbers_of(net)),
                    "test_error": f"{error_percent(logits_of(copy, x), label):.3f}",
                    "epochs": str(epochs),
                    "seconds": f"{seconds:.1f}",
                }
            )
        return out

    def choose(self) -> Iterator[Row]:
        """The validation error of the points in CHOSEN_ON at each rate."""
        x, label = self.x[self.count :], self.label[self.count :]
        for point in CHOSEN_ON:
            for rate in RATES:
                net, _, epochs = self.train(point, rate)
                error = error_percent(logits_of(net, x), label)
                yield {
                    "set": self.name,
                    "family": point.family,
                    "level": str(point.level),
                    "rate": str(rate),
                    "valid_error": f"{error:.2f}",
                    "epochs": str(epochs),
                }


def numbers_of(net: Stack) -> int:
    """All stored numbers, biases included."""
    return sum(layer.kept + layer.biases for layer in forms.stored(net))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--cache", type=Path, required=True, help="where the made sets are kept")
    parser.add_argument("--runs", type=Path, required=True, help="where dense nets and checkpoints are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=SETS)
    parser.add_argument("--only", default="", metavar="TEXT", help="points whose name has it")
    parser.add_argument("--limit", type=int, help="stop after so many nets")
    parser.add_argument("--list", action="store_true", help="name the missing nets and stop")
    parser.add_argument("--choose", action="store_true", help="compare learning rates on validation images")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    left = [(name, point) for name in options.sets for point in missing(name, read(options.out), options.only)]
    if options.list:
        print("\n".join(f"{name} {point.name}" for name, point in left))
        return
    try:
        with terminable():
            if options.choose:
                for name in options.sets:
                    data = load(name, options.data, options.cache)
                    for row in Trainer(data, name, options.runs, data.valid).choose():
                        append(CHOICES, CHOICE_FIELDS, [row])
                        print(*row.values(), flush=True)
                return
            trainers: dict[str, Trainer] = {}
            for number, (name, point) in enumerate(left[: options.limit], 1):
                if name not in trainers:
                    trainers = {name: Trainer(load(name, options.data, options.cache), name, options.runs)}
                rows = trainers[name].rows(point)
                append(options.out, FIELDS, rows)
                for row in rows:
                    words = f"{row['weights']}: {row['bytes']} bytes, {row['test_error']} % test error"
                    print(f"[{number} of {len(left)}] {name} {point.name}, {words}", flush=True)
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
