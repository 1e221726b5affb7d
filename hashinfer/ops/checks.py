"""What many ops check: dtypes, ranks, and operands whose value decides the type of an output."""

from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from math import prod
from typing import Any

import numpy as np

from hashinfer.errors import OpError
from hashinfer.ops.base import (
    NATIVE_DTYPES,
    Array,
    Arrays,
    Call,
    Inputs,
    Item,
    Operand,
    Shape,
    TensorType,
    Types,
    normalize_axis,
    optional,
)

DType = np.dtype[Any]
DTypes = frozenset[DType]

BOOL: DTypes = frozenset({np.dtype(bool)})
FLOATS: DTypes = frozenset(map(np.dtype, ("f2", "f4", "f8")))
UNSIGNED: DTypes = frozenset(map(np.dtype, ("u1", "u2", "u4", "u8")))
SIGNED: DTypes = frozenset(map(np.dtype, ("i1", "i2", "i4", "i8")))
INTS = UNSIGNED | SIGNED
NUMERIC = INTS | FLOATS
ANY = NATIVE_DTYPES
INDICES: DTypes = frozenset(map(np.dtype, ("i4", "i8")))

INT64 = np.dtype(np.int64)
FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)

MAX_RANK = 64
"""NumPy has no array of more axes."""
MAX_BYTES = 2**63 - 1
"""Nor one of more bytes, even where another dimension is 0."""

ONNX_DTYPES: dict[int, DType] = {
    number: np.dtype(code)
    for number, code in {
        1: "f4", 2: "u1", 3: "i1", 4: "u2", 5: "i2", 6: "i4", 7: "i8", 9: "?", 10: "f2", 11: "f8", 12: "u4", 13: "u8",
    }.items()
}  # fmt: skip
"""The native dtypes by their number in TensorProto.DataType."""


def wide_dtype(dtype: DType) -> DType:
    """The dtype to compute in: float32 for float16, else the operand's own."""
    return FLOAT32 if dtype == FLOAT16 else dtype


class ValueNeededError(Exception):
    """The types of the outputs depend on an operand's value, and it is not known yet."""


def may_need_values(infer: Callable[[Any, Call, Inputs], Types]) -> Callable[[Any, Call, Inputs], Types | None]:
    """Make `infer` return None where it would raise ValueNeededError."""

    @wraps(infer)
    def wrapped(op: Any, call: Call, ins: Inputs) -> Types | None:
        try:
            return infer(op, call, ins)
        except ValueNeededError:
            return None

    return wrapped


def operands(ins: Arrays) -> list[Operand | None]:
    """The inputs of a run as `infer` takes them, every value known."""
    return [None if value is None else Operand.of(value) for value in ins]


def array(ins: Arrays, at: int) -> Array:
    """Input number `at` of a run, which `infer` has found to be there."""
    value = ins[at]
    if value is None:
        raise OpError(f"input {at} is missing")
    return value


def arrays(ins: Arrays, count: int) -> list[Array]:
    """The first inputs of a run, which `infer` has found to be there."""
    return [array(ins, at) for at in range(count)]


def given(ins: Sequence[Item | None]) -> list[Item]:
    """The inputs that are not left out."""
    return [value for value in ins if value is not None]


def need_dtype(operand: Operand, allowed: DTypes, what: str) -> None:
    """Raise OpError unless the operand's dtype is one of `allowed`."""
    if operand.dtype not in allowed:
        raise OpError(f"{what} is {operand.type}; expected one of {', '.join(sorted(map(str, allowed)))}")


def need(ins: Inputs, at: int, what: str, allowed: DTypes | None = None) -> Operand:
    """Input number `at`, which the op cannot do without. Raises OpError if it is left out or of another dtype."""
    operand = optional(ins, at)
    if operand is None:
        raise OpError(f"input {at} ({what}) is missing")
    if allowed is not None:
        need_dtype(operand, allowed, what)
    return operand


def need_all(ins: Inputs, *whats: str) -> list[Operand]:
    """The first inputs, none of them left out. Raises OpError if one is."""
    return [need(ins, at, what) for at, what in enumerate(whats)]


def need_same_dtype(first: Operand, other: Operand, what: str) -> None:
    """Raise OpError unless both operands have one dtype."""
    if other.dtype != first.dtype:
        raise OpError(f"{what} is {other.type}; expected the dtype of input 0, {first.dtype}")


def need_rank(operand: Operand, at_least: int, what: str) -> None:
    """Raise OpError if the operand has fewer axes."""
    if operand.rank < at_least:
        raise OpError(f"{what} is {operand.type}; expected rank {at_least} or more")


def all_given(ins: Inputs) -> list[Operand]:
    """The inputs of an op that takes any number of them, at least one. Raises OpError if one is left out."""
    found = given(ins)
    if not found or len(found) < len(ins):
        raise OpError(f"{len(found)} of {len(ins)} inputs are given; expected one or more, none left out")
    return found


def tensor(dtype: DType, shape: Sequence[int]) -> TensorType:
    """A tensor type. Raises OpError on a shape that no array can have."""
    if len(shape) > MAX_RANK:
        raise OpError(f"a tensor would get rank {len(shape)}; expected at most {MAX_RANK}")
    if any(dim < 0 for dim in shape):
        raise OpError(f"a tensor would get the shape {list(shape)}; expected no negative dimension")
    if prod(dim or 1 for dim in shape) * dtype.itemsize > MAX_BYTES:
        raise OpError(f"a tensor would get the shape {list(shape)}, which is beyond what memory can address")
    return TensorType(dtype, tuple(shape))


def known(operand: Operand) -> Array:
    """The elements of an operand as a vector. Raises ValueNeededError while they are unknown."""
    if operand.value is None:
        raise ValueNeededError
    return operand.value.reshape(-1)


def ints_value(operand: Operand, what: str) -> tuple[int, ...]:
    """The value of a vector (or scalar) of integers. Raises ValueNeededError while it is unknown."""
    need_dtype(operand, INTS, what)
    if operand.rank > 1:
        raise OpError(f"{what} is {operand.type}; expected a vector")
    return tuple(known(operand).tolist())


def scalar_value(operand: Operand, allowed: DTypes, what: str) -> Any:
    """The one element of an operand, as a Python number. Raises ValueNeededError while it is unknown."""
    need_dtype(operand, allowed, what)
    need_one_element(operand, what)
    return known(operand)[0].item()


def need_one_element(operand: Operand, what: str) -> None:
    """Raise OpError unless the operand is a scalar or a vector of one element."""
    if operand.shape not in {(), (1,)}:
        raise OpError(f"{what} is {operand.type}; expected a scalar")


def ints_setting(call: Call, ins: Inputs, name: str, at: int, since: int) -> tuple[int, ...] | None:
    """Integers that are attribute `name` before opset `since` and input `at` from there on; None if not given."""
    if call.opset < since:
        value = call.get(name, None)
        return None if value is None else tuple(int(item) for item in value)
    operand = optional(ins, at)
    return None if operand is None else ints_value(operand, f"input {at} ({name})")


def need_ints_setting(call: Call, ins: Inputs, name: str, at: int, since: int) -> tuple[int, ...]:
    """ints_setting. Raises OpError where they are not given."""
    value = ints_setting(call, ins, name, at, since)
    if value is None:
        raise OpError(f"{name} are missing")
    return value


def axis_of(call: Call, shape: Shape, default: int) -> int:
    """The attribute `axis` counted from the front of `shape`. Raises OpError if it is out of range."""
    return normalize_axis(int(call.get("axis", default)), len(shape))


def normalize_axes(axes: Iterable[int], rank: int) -> tuple[int, ...]:
    """Every axis counted from the front. Raises OpError if one is out of range or occurs twice."""
    normal = tuple(normalize_axis(axis, rank) for axis in axes)
    if len(set(normal)) < len(normal):
        raise OpError(f"axes are {list(normal)}; expected each once")
    return normal


def with_dims(shape: Shape, axis: int, *dims: int) -> Shape:
    """`shape` with any number of dimensions in the place of one."""
    return (*shape[:axis], *dims, *shape[axis + 1 :])


def reduced(shape: Shape, axes: Sequence[int]) -> Shape:
    """`shape` with length 1 along `axes`."""
    return tuple(1 if at in axes else dim for at, dim in enumerate(shape))


def need_index_range(indices: Array, dim: int) -> None:
    """Raise OpError unless -dim <= index < dim for every index."""
    if not indices.size:
        return
    low, high = int(indices.min()), int(indices.max())
    if low < -dim or high >= dim:
        raise OpError(f"index {low if low < -dim else high} is out of range; expected {-dim} to {dim - 1}")


def need_broadcasts_to(shape: Shape, target: Shape, what: str) -> None:
    """Raise OpError unless `shape` broadcasts to `target` and leaves it as it is."""
    tail = target[len(target) - len(shape) :]
    if len(shape) > len(target) or any(dim not in {1, wanted} for dim, wanted in zip(shape, tail, strict=True)):
        raise OpError(f"{what} has shape {list(shape)}; expected one that broadcasts to {list(target)}")
