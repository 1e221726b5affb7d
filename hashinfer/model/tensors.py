"""Tensors of a file as NumPy arrays: every length is checked against the bytes that are there."""

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from hashinfer.errors import MemoryLimitError, ModelError, UnsupportedError
from hashinfer.model.graph import Array

MAX_RANK, MAX_EXTENT = 64, 2**59
"""NumPy's limits: axes, and elements of an empty array were its empty dimensions 1, at up to 16 bytes each."""

_FOUR_BIT = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}


def numpy_dtype(elem_type: int, where: str) -> np.dtype[Any]:
    """NumPy's dtype for an ONNX element type. Raises ModelError for a number that is none."""
    try:
        return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, ValueError, TypeError):
        raise ModelError(f"{where} has element type {elem_type}, which is no ONNX element type") from None


def to_array(tensor: TensorProto, where: str, folder: Path | None, max_bytes: int | None = None) -> Array:
    """The values of `tensor`, read-only. `folder`: where external data may lie, None if nowhere.

    Raises ModelError where the dims and the stored bytes disagree, before anything of the claimed size is made;
    MemoryLimitError where external data takes more than `max_bytes`, before it is read.
    """
    dims = tuple(tensor.dims)
    found = f"{where} has dims {list(dims)}"
    if any(d < 0 for d in dims):
        raise ModelError(f"{found}; expected none below 0")
    if len(dims) > MAX_RANK or (0 in dims and prod(max(d, 1) for d in dims) > MAX_EXTENT):
        raise ModelError(f"{found}, more than an array can have")
    if tensor.HasField("segment"):
        raise UnsupportedError(f"{where} is stored in segments, which ONNX no longer uses")
    if tensor.data_type == TensorProto.STRING:
        if prod(dims) != len(tensor.string_data):
            raise ModelError(f"{found} and {len(tensor.string_data)} strings")
        try:
            return _frozen(np.array([s.decode() for s in tensor.string_data], object).reshape(dims))
        except UnicodeDecodeError:
            raise ModelError(f"{where} holds a string that is not UTF-8") from None
    dtype = numpy_dtype(tensor.data_type, where)
    if tensor.data_location == TensorProto.EXTERNAL:
        raw = _external_bytes(tensor, where, folder, max_bytes)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _typed_data(tensor, found)
    size = prod(dims)
    expected = (size + 1) // 2 if tensor.data_type in _FOUR_BIT else size * dtype.itemsize
    if len(raw) != expected:
        raise ModelError(f"{found} of {dtype}, {expected} bytes; {len(raw)} bytes are stored")
    if tensor.data_type in _FOUR_BIT:
        return _typed_data(tensor, found)
    return _frozen(np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(dims))


def _typed_data(tensor: TensorProto, found: str) -> Array:
    stored = max(
        len(getattr(tensor, f)) for f in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    )
    if prod(tensor.dims) > 8 * (stored + len(tensor.raw_data)):
        raise ModelError(f"{found}; {stored} numbers are stored")
    try:
        return _frozen(np.asarray(numpy_helper.to_array(tensor)))
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise ModelError(f"{found} that its {stored} stored numbers do not fit: {error}") from None


def _external_bytes(tensor: TensorProto, where: str, folder: Path | None, max_bytes: int | None) -> bytes:
    entries = {e.key: e.value for e in tensor.external_data}
    location = entries.get("location", "")
    lies = f"{where} lies in {location!r}"
    if folder is None:
        raise UnsupportedError(
            f"{where} lies in the file {location!r}; a model given as bytes has no folder to look in"
        )
    root = folder.resolve()
    path = (root / location).resolve()
    if not location or Path(location).is_absolute() or not path.is_relative_to(root):
        raise ModelError(f"{lies}, outside the model's folder")
    if not path.is_file():
        raise ModelError(f"{lies}, which cannot be read: it is no file")
    try:
        offset, stored = int(entries.get("offset", "0")), path.stat().st_size
        length = int(entries.get("length", str(stored - offset)))
    except (OSError, ValueError) as error:
        raise ModelError(f"{lies}, which cannot be read: {error}") from None
    if not (0 <= offset <= stored and 0 <= length <= stored - offset):
        raise ModelError(f"{where} is bytes {offset} to {offset + length} of {location!r}, which has {stored}")
    if max_bytes is not None and length > max_bytes:
        raise MemoryLimitError(f"{where} takes {length} bytes of {location!r}; {max_bytes} are left of those allowed")
    with path.open("rb") as file:
        file.seek(offset)
        data: bytes = file.read(length)
        return data


def _frozen(array: Array) -> Array:
    array.flags.writeable = False
    return array
