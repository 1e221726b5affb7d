"""Score a data set larger than memory on several workers, with Dask.

    pip install '.[dask]'
    python models/examples/score_dask.py models/mnist-dyadic-64x.hnet digits.npy scores.npy [--workers 2] [--rows 4096]

The model travels with each task as the bytes of its file, some tens of KB. A task reads its rows from the mapped .npy
file, which every worker must be able to see, and writes one part, whole or not at all; a part that a lost worker left
undone is scored again, and one that it had written is written again with the same bits. So no row is lost or counted
twice, whichever worker dies when.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np
from dask.distributed import Client, LocalCluster, as_completed, get_worker

import hashinfer
from hashinfer.files import NpyWriter, atomic_write


def session_of(model: bytes) -> hashinfer.InferenceSession:
    """The worker's one session of a model, which all its tasks share."""
    kept = get_worker().__dict__.setdefault("hashinfer_sessions", {})
    digest = hashlib.sha256(model).digest()
    if digest not in kept:
        kept[digest] = hashinfer.InferenceSession(model, threads=1)
    return kept[digest]


def score(start: int, model: bytes, source: str, folder: str, stop: int) -> int:
    """Score rows `start` to `stop` of an .npy file into a part of the folder; returns `start`."""
    rows = np.load(source, mmap_mode="r")[start:stop]
    with atomic_write(Path(folder) / f"{start}.npy") as file:
        np.save(file, session_of(model)(rows))
    return start


def score_all(client: Client, model: bytes, source: Path, target: Path, rows: int) -> int:
    """Score every row of `source` into the .npy file `target`, in order; returns how many there are."""
    count = len(np.load(source, mmap_mode="r"))
    starts = range(0, count, rows)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        stops = [min(start + rows, count) for start in starts]
        names = [f"score-{start}" for start in starts]
        tasks = client.map(
            score,
            starts,
            [model] * len(starts),
            [str(source)] * len(starts),
            [folder] * len(starts),
            stops,
            key=names,
            retries=5,
            pure=False,
        )
        for done in as_completed(tasks):
            done.result()
            done.release()
        parts = [np.load(Path(folder) / f"{start}.npy", mmap_mode="r") for start in starts]
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
    parser.add_argument("--memory", default="512MiB", help="of a worker")
    options = parser.parse_args()
    cluster = LocalCluster(
        n_workers=options.workers, threads_per_worker=1, memory_limit=options.memory, dashboard_address=None
    )
    with cluster, Client(cluster) as client:
        count = score_all(
            client, options.model.read_bytes(), options.source.absolute(), options.target.absolute(), options.rows
        )
    print(f"{count} rows scored into {options.target}")


if __name__ == "__main__":
    main()
