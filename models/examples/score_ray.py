"""Score a data set larger than memory on several workers, with Ray Data.

    pip install '.[ray]'
    python models/examples/score_ray.py models/mnist-dyadic-64x.hnet digits.npy scores.npy [--workers 2] [--rows 4096]

Each worker opens the model once, from the bytes of its file, some tens of KB. A task reads its rows from the mapped
.npy file, which every worker must be able to see, and writes one part, whole or not at all; what a lost worker left
undone Ray gives to another, and a part that was there already is written again with the same bits. So no row is lost or
counted twice, whichever worker dies when.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray

import hashinfer
from hashinfer.files import NpyWriter, atomic_write


class Scorer:
    """A worker: scores runs of rows of an .npy file into parts of a folder."""

    def __init__(self, model: bytes, source: str, folder: str, rows: int) -> None:
        self.session = hashinfer.InferenceSession(model, threads=1)
        self.source, self.folder, self.rows = source, Path(folder), rows

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """batch["id"]: numbers of tasks, each of `rows` rows; returned as they are."""
        images = np.load(self.source, mmap_mode="r")
        for number in batch["id"]:
            start = int(number) * self.rows
            with atomic_write(self.folder / f"{start}.npy") as file:
                np.save(file, self.session(images[start : start + self.rows]))
        return batch


def score_all(model: bytes, source: Path, target: Path, rows: int, workers: int) -> int:
    """Score every row of `source` into the .npy file `target`, in order; returns how many there are."""
    count = len(np.load(source, mmap_mode="r"))
    tasks = -(-count // rows)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        scored = ray.data.range(tasks, override_num_blocks=tasks).map_batches(
            Scorer,
            fn_constructor_args=(model, str(source), folder, rows),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
            num_cpus=1,
        )
        seen = sum(len(batch["id"]) for batch in scored.iter_batches(batch_size=None))
        if seen != tasks:
            raise RuntimeError(f"{seen} of {tasks} tasks came back")
        parts = [np.load(Path(folder) / f"{k * rows}.npy", mmap_mode="r") for k in range(tasks)]
        with atomic_write(target) as file:
            writer = NpyWriter(file)
            for part in parts:
                writer.write(part, count, split=True)
    return count


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=4096, help="of a task")
    options = parser.parse_args()
    # One more for the tasks that hand out the numbers.
    ray.init(num_cpus=options.workers + 1, include_dashboard=False, log_to_driver=False)
    try:
        model, source, target = options.model.read_bytes(), options.source.absolute(), options.target.absolute()
        count = score_all(model, source, target, options.rows, options.workers)
    finally:
        ray.shutdown()
    print(f"{count} rows scored into {options.target}")


if __name__ == "__main__":
    main()
