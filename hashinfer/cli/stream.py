"""Running a session over an input larger than a batch should be, and writing what comes out as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from hashinfer.errors import InputError

if TYPE_CHECKING:
    from hashinfer.session.session import InferenceSession

Array = npt.NDArray[Any]

CHUNK_ROWS = 1024
CHUNK_BYTES = 64 * 2**20


def batch_axis(session: InferenceSession, feed: Mapping[str, Array]) -> int | None:
    """The common length of the inputs' first dimensions if the model leaves it open everywhere, else None."""
    values = [*session.get_inputs(), *session.get_outputs()]
    names = {v.shape[0] if v.shape and isinstance(v.shape[0], str) else None for v in values}
    if len(names) != 1 or None in names or not feed:
        return None
    lengths = {a.shape[0] for a in feed.values() if a.ndim}
    return lengths.pop() if len(lengths) == 1 else None


def chunks(session: InferenceSession, feed: Mapping[str, Array]) -> Iterator[tuple[int, int, list[Any]]]:
    """(first row, rows in all, outputs) for each chunk of the batch; one chunk where the batch cannot be split."""
    rows = batch_axis(session, feed)
    if rows is None or rows <= 1:
        yield 0, 1 if rows is None else rows, session.run(None, feed)
        return
    row_bytes = sum(a.nbytes // rows for a in feed.values())
    step = max(1, min(CHUNK_ROWS, CHUNK_BYTES // max(row_bytes, 1)))
    for start in range(0, rows, step):
        part = {name: a[start : start + step] for name, a in feed.items()}
        yield start, rows, session.run(None, part)


class NpyWriter:
    """One .npy array written chunk by chunk: the header says how many rows there will be in all."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.started = False

    def write(self, chunk: Array, rows: int, split: bool) -> None:
        """Append a chunk. rows: of the whole array, where it is split at all."""
        if not self.started:
            shape = (rows, *chunk.shape[1:]) if split else chunk.shape
            header = {"descr": np.lib.format.dtype_to_descr(chunk.dtype), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(self.file, header)
            self.started = True
        self.file.write(np.ascontiguousarray(chunk).tobytes())


def check_rows(labels: Array, rows: int, outputs: Sequence[str]) -> None:
    """Raise InputError unless there is one label for each row."""
    if len(labels) != rows:
        raise InputError(f"there are {len(labels)} labels for {rows} rows of {outputs[0]!r}")
