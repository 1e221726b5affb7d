"""Compare recipes on validation data; no test image is read.

    python -m bench.paper.tune --data DIR --cache DIR --cells ROT:3:64:HashNet:dyadic ... -- lr=0.003 drop=0.3

Trains the named cells on the training part alone and appends the validation error of each to the CSV file: of the
validation images and of those that no part of the set has (sets.spare). Every argument after -- changes one field of
the recipe.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path

import numpy as np
import torch

from bench.paper.cells import Cell
from bench.paper.nets import Net
from bench.paper.sets import load, spare
from bench.paper.train import Recipe, Scale, error_percent, logits_of, tensor, train

CELL = ("set", "depth", "ratio", "method", "scheme", "seed")
FIELDS = (*CELL, "valid_error", "valid_loss", "seconds", "epochs", "recipe")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--cache", type=Path, required=True, help="where the made sets are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "choice.csv")
    parser.add_argument("--cells", nargs="+", required=True, metavar="SET:DEPTH:RATIO:METHOD[:SCHEME[:SEED]]")
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE", help="of the recipe")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kinds = {f.name: type(f.default) for f in dataclasses.fields(Recipe)}
    changes = dict(change.split("=") for change in options.changes)
    recipe = Recipe(**{k: kinds[k](v) for k, v in changes.items()})
    teachers: dict[Cell, Net] = {}
    for text in options.cells:
        name, depth, ratio, method, *rest = text.split(":")
        cell = Cell(name, int(depth), int(ratio), method, *rest[:1], *map(int, rest[1:]))
        data = load(name, options.data, options.cache)
        seen = len(data.image) - data.valid
        more, of_more = spare(name, options.data)
        x = Scale.of(data.image[:seen]).inputs(np.concatenate([data.image, more]))
        label = tensor(np.concatenate([data.label, of_more]))
        if cell.distilled and cell.teacher not in teachers:
            full = train(cell.teacher, recipe, x[:seen], label[:seen])[0]
            teachers[cell.teacher] = full.narrow(getattr(torch, recipe.precision))
        teacher = teachers[cell.teacher] if cell.distilled else None
        net, seconds, epochs = train(cell, recipe, x[:seen], label[:seen], teacher=teacher)
        logits = logits_of(net, x[seen:])
        row = {
            "set": name,
            "depth": depth,
            "ratio": ratio,
            "method": method,
            "scheme": cell.scheme,
            "seed": cell.seed,
            "valid_error": f"{error_percent(logits, label[seen:]):.2f}",
            "valid_loss": f"{float(torch.nn.functional.cross_entropy(logits, label[seen:])):.4f}",
            "seconds": f"{seconds:.1f}",
            "epochs": epochs,
            "recipe": " ".join(options.changes),
        }
        new = not options.out.exists()
        with options.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow(row)
        print(*row.values(), flush=True)


if __name__ == "__main__":
    main()
