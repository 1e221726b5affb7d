"""How much the reference implementation of an op will make, told from the node before it runs.

Shapes are those of onnx's shape inference for the one node, with its small inputs as constants.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hashinfer.ops.base import Call, TensorType, Types

SMALL_BYTES = 1024
"""Inputs up to this size may say what a shape will be; larger ones are data."""


def small_value(value: Any) -> bytes | None:
    """The bytes of an input that may say what a shape will be; None for any other."""
    small = isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.nbytes <= SMALL_BYTES
    return value.tobytes() if small else None


def output_types(model: Any) -> list[TensorType] | None:
    """Types of a model's outputs; None unless all are tensors whose shapes are known."""
    from onnx import helper, shape_inference

    try:
        inferred = shape_inference.infer_shapes(model, data_prop=True)
    except Exception:
        return None
    types = []
    for value in inferred.graph.output:
        kind = value.type.tensor_type
        if not (value.type.HasField("tensor_type") and kind.HasField("shape") and kind.elem_type):
            return None
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if min(dims, default=0) < 0:
            return None
        types.append(TensorType(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)), tuple(dims)))
    return types


def least_bytes(types: Types | None, call: Call, ins: Sequence[object | None]) -> int:
    """Bytes that the outputs take: of these types, or, where the types are not known, about as much as the inputs.

    A string is taken to be as long as the longest ones of the inputs and attributes together, as NumPy would pad it.
    """
    longest = sum(map(_longest, ins)) + _longest(list(call.attrs.values()))
    if types is None:
        rows = max((x.shape[0] for x in ins if isinstance(x, np.ndarray) and x.ndim), default=1)
        columns = max((v for k, v in call.attrs.items() if k in _COLUMNS and isinstance(v, int)), default=0)
        widths = call.get("inputdimensions", ())
        columns = max(columns, sum(widths) if isinstance(widths, tuple) else 0)
        return sum(map(_bytes, ins)) + rows * (8 * columns + 4 * longest)
    return sum(t.size * (4 * longest + 8 if t.dtype.kind in "OUS" else t.dtype.itemsize) for t in types)


_COLUMNS = ("n_targets", "targets")
"""Attributes of ai.onnx.ml's ops that say how many columns the output has."""


def _longest(value: object) -> int:
    """Characters of the longest string in a value."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, np.ndarray):
        return max(map(_longest, value.flat), default=0) if value.dtype.kind in "OUS" else 0
    if isinstance(value, list | tuple):
        return max(map(_longest, value), default=0)
    return 0


def _bytes(value: object) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, list) else 0
