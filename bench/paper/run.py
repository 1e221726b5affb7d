"""Train the cells of the paper's tables that are not yet in the results, one after the other.

    python -m bench.paper.run --data DIR --cache DIR --runs DIR [--only TEXT ...] [--limit N] [--list]

DIR of --data holds MNIST's four files; --cache keeps the made sets, --runs checkpoints and trained weights. After each
cell its row is added to --out. Stopped at any point, the same command goes on from the last checkpoint. A final net
learns from the training and the validation images together, as the paper's do; the recipe was chosen before, with the
validation images set aside (bench.paper.tune). Its error on the test images is computed once, when it is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import signal
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import torch

from bench.paper.cells import Cell, plan
from bench.paper.nets import Net
from bench.paper.sets import DataSet, load
from bench.paper.train import Recipe, Scale, error_percent, logits_of, save, tensor, train
from hashinfer.files import atomic_write

RESULTS = Path(__file__).parent / "results" / "results.csv"
FIELDS = (
    "set",
    "depth",
    "ratio",
    "inflation",
    "method",
    "scheme",
    "seed",
    "test_error",
    "stored",
    "budget",
    "units",
    "images",
    "epochs",
    "seconds",
    "recipe",
)
Row = dict[str, str]


def key(cell: Cell) -> Row:
    """The fields of a row that say which cell it is."""
    values = {
        "set": cell.data,
        "depth": cell.depth,
        "ratio": cell.ratio,
        "inflation": cell.inflation,
        "method": cell.method,
        "scheme": cell.scheme,
        "seed": cell.seed,
    }
    return {k: str(v) for k, v in values.items()}


def read(path: Path) -> list[Row]:
    """The rows of a results file; none where there is no file. Raises ValueError for other columns."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != FIELDS:
            raise ValueError(f"{path} has columns {reader.fieldnames}; expected {list(FIELDS)}")
        return list(reader)


def write(path: Path, rows: list[Row]) -> None:
    """All rows, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as raw:
        lines = [",".join(FIELDS), *(",".join(row[f] for f in FIELDS) for row in rows)]
        raw.write(("\n".join(lines) + "\n").encode())


def row_of(cell: Cell, rows: list[Row], recipe: Recipe) -> Row | None:
    """The row of a cell under a recipe, if there is one."""
    wanted = {**key(cell), "recipe": recipe.digest(cell)}
    return next((row for row in rows if all(row[k] == v for k, v in wanted.items())), None)


class Trainer:
    """Trains cells, and the teachers they need; keeps weights in a folder."""

    def __init__(self, recipe: Recipe, data: Path, cache: Path, runs: Path) -> None:
        self.recipe = recipe
        self._runs = runs
        self.load = lru_cache(maxsize=1)(lambda name: load(name, data, cache))

    def weights(self, cell: Cell) -> Path:
        """Where a trained net's parameters are."""
        return self._runs / f"{cell.name}-{self.recipe.digest(cell)}.pt"

    def teacher(self, cell: Cell) -> Net:
        """The trained full-size net of a distilled cell. Raises FileNotFoundError where it was not trained here."""
        net = Net(cell.teacher)
        net.load_state_dict(torch.load(self.weights(cell.teacher), weights_only=True))
        return net.narrow(getattr(torch, self.recipe.precision))

    def run(self, cell: Cell, progress: object = None) -> Row:
        """Train one cell, keep its weights, and give its row."""
        data: DataSet = self.load(cell.data)
        scale = Scale.of(data.image)
        path = self.weights(cell)
        checkpoint = path.with_suffix(".checkpoint")
        net, seconds, epochs = train(
            cell,
            self.recipe,
            scale.inputs(data.image),
            tensor(data.label),
            teacher=self.teacher(cell) if cell.distilled else None,
            checkpoint=checkpoint,
            progress=progress,  # type: ignore[arg-type]
        )
        error = error_percent(logits_of(net, scale.inputs(data.test_image)), tensor(data.test_label))
        save(path, net.state_dict())
        checkpoint.unlink(missing_ok=True)
        return {
            **key(cell),
            "test_error": f"{error:.3f}",
            "stored": str(net.numbers),
            "budget": str(cell.budget),
            "units": "-".join(map(str, cell.units)),
            "images": str(len(data.image)),
            "epochs": str(epochs),
            "seconds": f"{seconds:.1f}",
            "recipe": self.recipe.digest(cell),
        }


def missing(trainer: Trainer, rows: list[Row], only: list[str]) -> list[Cell]:
    """Cells to train, in order: those whose name has each text of `only` in it and that have no row.

    A teacher whose weights are gone is trained again where a distilled cell needs it.
    """
    out: list[Cell] = []
    for cell in plan():
        if all(text.lower() in cell.name for text in only) and row_of(cell, rows, trainer.recipe) is None:
            if cell.distilled and not trainer.weights(cell.teacher).exists():
                out.append(cell.teacher)
            out.append(cell)
    return list(dict.fromkeys(out))


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main() -> None:
    """The command line."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--cache", type=Path, required=True, help="where the made sets are kept")
    parser.add_argument("--runs", type=Path, required=True, help="where checkpoints and trained weights are kept")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", nargs="*", default=[], metavar="TEXT", help="cells whose name has each text in it")
    parser.add_argument("--limit", type=int, help="stop after so many cells")
    parser.add_argument("--list", action="store_true", help="name the missing cells and stop")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    try:
        rows = read(options.out)
    except ValueError as error:
        parser.error(str(error))
    trainer = Trainer(Recipe(), options.data, options.cache, options.runs)
    cells = missing(trainer, rows, options.only)[: options.limit]
    if options.list:
        print("\n".join(cell.name for cell in cells))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    try:
        with terminable(), Progress(*columns, TimeRemainingColumn(), console=console) as bars:
            everything = bars.add_task("cells", total=len(cells))
            for cell in cells:
                images = len(trainer.load(cell.data).image)
                one = bars.add_task(cell.name, total=trainer.recipe.epochs(images, cell.data))
                row = trainer.run(cell, lambda done, total, one=one: bars.update(one, completed=done, total=total))
                # Others may have added rows meanwhile.
                rows = [r for r in read(options.out) if any(r[k] != row[k] for k in (*key(cell), "recipe"))]
                write(options.out, [*rows, row])
                bars.remove_task(one)
                bars.advance(everything)
                print(f"{cell.name}: {row['test_error']} % test error, {row['stored']} numbers, {row['seconds']} s")
                sys.stdout.flush()
    except (OSError, ValueError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
