"""Inputs for a model: checked ones of the user's, and random ones where there are none."""

import math
from collections.abc import Mapping

import numpy as np

from hashinfer.errors import InputError
from hashinfer.model.graph import Array, Graph, ValueType

Feed = Mapping[str, Array]

RANDOM_ROWS, RANDOM_OPEN, RANDOM_NUMBERS = 16, 8, 1 << 26
_CHECK_BYTES = 1 << 26
_PASSES_IDS_ON = frozenset({"Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose"})


def fixed_rows(inputs: tuple[ValueType, ...]) -> int | None:
    """The number of rows that the model fixes for its inputs; None where it leaves their first dimension open."""
    found = {v.shape[0] for v in inputs if v.shape}
    sizes = [d for d in found if isinstance(d, int)]
    return sizes[0] if sizes else None


def checked(feed: Feed, inputs: tuple[ValueType, ...]) -> dict[str, Array]:
    """`feed`, if every input of the model is there, fits its type, has rows and holds no NaN or infinity.

    Raises InputError otherwise: rows must be as many in all inputs, and at least two, or what the model fixes.
    """
    out: dict[str, Array] = {}
    rows: int | None = None
    for value in inputs:
        if value.name not in feed:
            raise InputError(f"the data has no array for input {value.name!r}")
        array = feed[value.name]
        _check_type(array, value)
        if rows is not None and len(array) != rows:
            raise InputError(f"input {value.name!r} has {len(array)} rows; the one before it has {rows}")
        rows = len(array)
        _check_finite(array, value.name)
        out[value.name] = array
    least = max(2, fixed_rows(inputs) or 0)
    if rows is not None and rows < least:
        raise InputError(f"the data has {rows} rows; expected at least {least}")
    return out


def _check_type(array: Array, value: ValueType) -> None:
    wanted = [d if isinstance(d, int) else "any" for d in value.shape or ()]
    fits = array.ndim and (value.shape is None or array.ndim == len(value.shape))
    if fits and (value.dtype is None or array.dtype == value.dtype):
        # The first dimension counts rows: a model that fixes it is fed that many at a time.
        wanted[:1] = ["any"] * len(wanted[:1])
        if all(d in ("any", size) for d, size in zip(wanted, array.shape, strict=False)):
            return
    found, expected = f"{array.dtype}{list(array.shape)}", "?" if value.dtype is None else str(value.dtype)
    raise InputError(f"the data for input {value.name!r} is {found}; expected {expected}{wanted}")


def _check_finite(array: Array, name: str) -> None:
    if array.dtype.kind != "f" or not len(array):
        return
    step = max(1, _CHECK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        block = array[start : start + step]
        if not np.isfinite(block).all():
            row = start + int(np.argmin(np.isfinite(block).reshape(len(block), -1).all(1)))
            raise InputError(
                f"the data for input {name!r} has a NaN or an infinity in row {row}; expected finite numbers"
            )


def random_feed(graph: Graph, seed: int) -> dict[str, Array]:
    """Inputs from a seeded generator: normal numbers, ids that their tables have, 16 rows, 8 in other open places."""
    rng = np.random.default_rng(seed)
    limits = _id_limits(graph)
    feed: dict[str, Array] = {}
    named: dict[str, int] = {}
    for value in graph.inputs:
        shape = []
        for at, d in enumerate(value.shape or ()):
            size = RANDOM_ROWS if at == 0 else RANDOM_OPEN
            shape.append(d if isinstance(d, int) else named.setdefault(d, size) if isinstance(d, str) else size)
        dtype = value.dtype or np.dtype(np.float32)
        if math.prod(shape) > RANDOM_NUMBERS:
            raise InputError(f"input {value.name!r} has shape {shape}, which is large for random numbers: give --data")
        if dtype.kind == "f":
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b":
            feed[value.name] = rng.integers(0, 2, shape).astype(dtype)
        elif dtype.kind in "iu":
            high = min(limits.get(value.name, 256 if dtype.itemsize == 1 else 2), int(np.iinfo(dtype).max) + 1)
            feed[value.name] = rng.integers(0, high, shape).astype(dtype)
        else:
            raise InputError(f"input {value.name!r} is {dtype}; expected numbers: give --data")
    return feed


def _id_limits(graph: Graph) -> dict[str, int]:
    """For inputs that number the rows of tables: how many rows the smallest one has."""
    source = {v.name: v.name for v in graph.inputs}
    limits: dict[str, int] = {}
    for node in graph.nodes:
        if node.op_type in _PASSES_IDS_ON and node.inputs[0] in source:
            source[node.outputs[0]] = source[node.inputs[0]]
        if node.op_type == "Gather" and node.inputs[1] in source and node.inputs[0] in graph.initializers:
            rows = graph.initializers[node.inputs[0]].shape[node.attrs.get("axis", 0)]
            name = source[node.inputs[1]]
            limits[name] = min(rows, limits.get(name, rows))
    return limits
