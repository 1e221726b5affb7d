"""Running a session over an input larger than a batch should be, and writing what comes out as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hashinfer.errors import HashinferError, InputError, MemoryLimitError
from hashinfer.plan.limits import physical_memory
from hashinfer.plan.rows import check_rows
from hashinfer.session.face import Array

if TYPE_CHECKING:
    from hashinfer.session.session import InferenceSession

WHOLE_SHARE = 4
"""A run is split where it would take more than this part of the machine's memory."""
QUIET_BYTES = 2**21
"""A run whose rows are known not to depend on each other is split where its buffers would take more than this."""


def batch_axis(session: InferenceSession, feed: Mapping[str, Array]) -> int | None:
    """The common length of the inputs' first dimensions if the model leaves it open everywhere, else None."""
    values = [*session.get_inputs(), *session.get_outputs()]
    names = {v.shape[0] if v.shape and isinstance(v.shape[0], str) else None for v in values}
    if len(names) != 1 or None in names or not feed:
        return None
    lengths = {a.shape[0] for a in feed.values() if a.ndim}
    return lengths.pop() if len(lengths) == 1 else None


def chunk_rows(session: InferenceSession, feed: Mapping[str, Array], chosen: int | None) -> tuple[int | None, bool]:
    """(rows to run at a time, None for all at once; whether it is known that no row depends on another).

    The rows `chosen`, where the model has a batch dimension at all; otherwise as many as QUIET_BYTES hold, if rows are
    known to be independent; otherwise all of them unless that would take more than a share of the memory there is.
    Raises InputError where rows are chosen and the batch cannot be split.
    """
    rows = batch_axis(session, feed)
    if rows is None:
        if chosen is not None:
            raise InputError("the model has no common open first dimension: it cannot be run in chunks of rows")
        return None, False
    if chosen is not None:
        return chosen, _independent(session, feed)
    buffers, _ = _plan_bytes(session, feed, rows)
    if buffers > QUIET_BYTES and _independent(session, feed):
        return max(1, rows * QUIET_BYTES // buffers), True
    allowed, step = physical_memory() // WHOLE_SHARE, rows
    each = sum(a.nbytes for a in feed.values()) / max(rows, 1)
    while step > 1 and _plan_bytes(session, feed, step)[1] + each * step > allowed:
        step = -(-step // 2)
    return (None if step >= rows else step), False


def _independent(session: InferenceSession, feed: Mapping[str, Array]) -> bool:
    try:
        one = session.plan({name: (1, *a.shape[1:]) for name, a in feed.items()})
        check_rows(one, list(feed), physical_memory())
    except HashinferError:
        return False
    return True


def _plan_bytes(session: InferenceSession, feed: Mapping[str, Array], rows: int) -> tuple[int, int]:
    """(bytes of buffers, of all that the plan holds) of a run of `rows` rows; endless where its plan is refused."""
    try:
        plan = session.plan({name: (rows, *a.shape[1:]) for name, a in feed.items()})
    except MemoryLimitError:
        return 2**62, 2**62
    return plan.buffer_bytes, plan.total_bytes


def chunks(
    session: InferenceSession, feed: Mapping[str, Array], rows: int | None
) -> Iterator[tuple[int, int, list[Any]]]:
    """(first row, rows in all, outputs) for each chunk of `rows` rows, or for everything at once.

    Raises InputError where an output has not one row for each row of the chunk.
    """
    if rows is None:
        outputs = session.run(None, feed)
        yield 0, len(outputs[0]) if outputs and np.ndim(outputs[0]) else 1, outputs
        return
    total = next(iter(feed.values())).shape[0]
    for start in range(0, total, rows):
        outputs = session.run(None, {name: a[start : start + rows] for name, a in feed.items()})
        here = min(rows, total - start)
        for value, made in zip(session.get_outputs(), outputs, strict=True):
            if len(made) != here:
                raise InputError(f"output {value.name!r} has {len(made)} rows for {here}: it cannot be run in chunks")
        yield start, total, outputs
