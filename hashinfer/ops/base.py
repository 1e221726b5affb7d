"""What an op is: a rule for the types of its outputs, and a function that writes them.

An op knows arrays and attributes, no graph and no node names: whoever calls it puts those in front of its errors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from hashinfer.errors import OpError

Array = npt.NDArray[Any]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorType:
    """dtype and shape of a tensor, both known."""

    dtype: np.dtype[Any]
    shape: Shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, stored without gaps."""
        return self.size * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Operand:
    """An input as it is known when types are inferred: always its type; its value where that is constant."""

    type: TensorType
    value: Array | None = None

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.type.dtype

    @property
    def shape(self) -> Shape:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    @classmethod
    def of(cls, value: Array) -> Operand:
        """The operand of a value that is there."""
        return cls(TensorType(value.dtype, value.shape), value)


def text(value: Any) -> str:
    """A string of an attribute, which ONNX stores as bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True)
class Call:
    """What a node says beside its inputs: attributes, the version of its op set, how many outputs it names."""

    attrs: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def get(self, name: str, default: Any) -> Any:
        """An attribute's value, or `default` where the node does not give it."""
        return self.attrs.get(name, default)

    def text(self, name: str, default: str) -> str:
        """An attribute that is a string."""
        return text(self.get(name, default))


Inputs = Sequence[Operand | None]
"""The inputs of a node, as they are known when types are inferred; None is one that it leaves out."""
Arrays = Sequence[Array | None]
"""The inputs of a run."""
Outputs = Sequence[Array]
"""The arrays that a run writes."""
Types = Sequence[TensorType]
"""The types of the outputs."""


class Op(ABC):
    """An op: `infer`, then `run` into arrays of the types that `infer` gave."""

    aliases: bool = False
    """Output 0 is input 0's bytes under another shape: `run` is never called, the plan shares the buffer."""

    shape_only: bool = False
    """The outputs depend on the types of the inputs alone; the plan folds them."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        """Whether the op does what this node asks. False sends the node to the reference implementation."""
        return True

    @abstractmethod
    def infer(self, call: Call, ins: Inputs) -> Types | None:
        """Types of the outputs; None where they depend on an operand's value that is not known yet.

        With every value known it never returns None. Raises OpError on operands the op is not defined for.
        """

    @abstractmethod
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        """Write the outputs. `outs` are C-contiguous and never overlap `ins`; `ins` may be read-only."""


Item = TypeVar("Item")
OpClass = TypeVar("OpClass", bound=Callable[[], Op])

REGISTRY: dict[str, Op] = {}
"""Native ops of the default ONNX domain by op type."""


def register(*op_types: str) -> Callable[[OpClass], OpClass]:
    """Class decorator: one instance serves the op types named."""

    def add(cls: OpClass) -> OpClass:
        for op_type in op_types:
            REGISTRY[op_type] = cls()
        return cls

    return add


NATIVE_DTYPES = frozenset(map(np.dtype, ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")))
"""What native ops compute with. Strings, bfloat16, complex numbers and types below 8 bits are not among them."""

MAX_NATIVE_RANK = 16
"""NumPy stops at 64 axes, and some ops split each axis in two or name each by a letter."""


def is_native(op: Op, call: Call, ins: Inputs) -> bool:
    """Whether `op` runs this node itself; if not, the reference implementation does."""
    return all(
        operand is None or (operand.dtype in NATIVE_DTYPES and operand.rank <= MAX_NATIVE_RANK) for operand in ins
    ) and op.supports(call, ins)


def optional(ins: Sequence[Item | None], at: int) -> Item | None:
    """Input number `at`, or None where the node leaves it out."""
    return ins[at] if at < len(ins) else None


def normalize_axis(axis: int, rank: int) -> int:
    """`axis` counted from the front. Raises OpError unless -rank <= axis < rank."""
    if not -rank <= axis < rank:
        raise OpError(f"axis is {axis}; expected {-rank} to {rank - 1} for rank {rank}")
    return axis % rank


def broadcast(*shapes: Shape) -> Shape:
    """The shape that `shapes` broadcast to. Raises OpError if they do not."""
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise OpError(f"shapes {' and '.join(str(list(s)) for s in shapes)} do not broadcast together") from None
