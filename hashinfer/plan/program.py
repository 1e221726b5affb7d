"""A program: the steps of a graph after fusing, in order, with the constants they use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeVar

import numpy as np

from hashinfer.errors import HashinferError, MemoryLimitError, OpError, at_node
from hashinfer.model.graph import ValueType
from hashinfer.ops.base import Array, Arrays, Call, Op, Operand, Outputs, TensorType, is_native
from hashinfer.ops.checks import operands
from hashinfer.ops.reference import ReferenceOp
from hashinfer.plan.limits import Limits, in_time

Value = TypeVar("Value")
LARGEST_EXTENT = 2**62
"""Bytes of an array, its empty dimensions taken as 1, that NumPy makes no more."""


@dataclass(frozen=True, slots=True)
class Program:
    """inputs: what a caller gives; outputs: names of the results; captures: names taken from an outer program.

    declared: what the file says of the outputs' types.
    """

    inputs: tuple[ValueType, ...]
    outputs: tuple[str, ...]
    declared: tuple[ValueType, ...]
    constants: Mapping[str, Array]
    steps: tuple[Step, ...]
    captures: tuple[str, ...] = ()
    dying: tuple[tuple[str, ...], ...] = field(init=False)
    """For each step, the values made before or by it that nothing behind it uses."""

    def __post_init__(self) -> None:
        last: dict[str, int] = {}
        for k, step in enumerate(self.steps):
            for name in (*step.outputs, *step.uses()):
                last[name] = k
        made = {name for step in self.steps for name in step.outputs if name} - set(self.outputs)
        dying: list[list[str]] = [[] for _ in self.steps]
        for name in made:
            dying[last[name]].append(name)
        object.__setattr__(self, "dying", tuple(map(tuple, dying)))


@dataclass(slots=True)
class Step:
    """One op to run. label: the ops it stands for, "ExpandDyadic+MatMul+Add+Relu"; nodes: their names in the file.

    With more than one node it is fused, and only its own op can run it.
    """

    label: str
    nodes: tuple[str, ...]
    op_type: str
    domain: str
    op: Op | None
    call: Call
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    subgraphs: Mapping[str, Program] = field(default_factory=dict)
    _reference: ReferenceOp | None = None

    def uses(self) -> Iterator[str]:
        """Names of the values it reads, those that its subgraphs take from outside among them."""
        yield from self.inputs
        for program in self.subgraphs.values():
            yield from program.captures

    def given(self, values: Mapping[str, Value]) -> list[Value | None]:
        """Its inputs among `values`, by name; None for one that is left out."""
        return [values[name] if name else None for name in self.inputs]

    def named(self, made: Iterable[Value]) -> Iterator[tuple[str, Value]]:
        """What belongs to its outputs, in their order, by the names of those that have one."""
        return ((name, value) for name, value in zip(self.outputs, made, strict=False) if name)

    def native_op(self, ins: Sequence[Operand | None]) -> Op | None:
        """The op that runs this step for such operands, or None where the reference implementation has to.

        Raises OpError, naming the node, where a fused step gets operands that its op does not take.
        """
        if self.op is not None and is_native(self.op, self.call, ins):
            return self.op
        if len(self.nodes) > 1:
            found = ", ".join(str(x.type) for x in ins if x is not None)
            raise OpError(self.explain(f"inputs {found}; its kernels take float32 of a low rank"))
        return None

    def compute(self, op: Op, ins: Arrays, outs: Outputs) -> None:
        """`op.run`, but where no output has elements: NumPy passes over the dimensions of those, however long."""
        if any(out.size for out in outs):
            op.run(self.call, ins, outs)

    @property
    def reference(self) -> ReferenceOp:
        """The op's reference implementation. Raises UnsupportedError if there is none."""
        if self._reference is None:
            self._reference = ReferenceOp(self.op_type, self.domain, self.call.opset)
        return self._reference

    @contextmanager
    def named_errors(self) -> Iterator[None]:
        """Errors of the op, foreseen or not, come out as OpError with the op and the node in front, once."""
        try:
            yield
        except (OpError, MemoryLimitError) as error:
            # The names of a subgraph's nodes begin with that of the node it belongs to.
            named = f"node {self.nodes[-1]!r}"[:-1] in str(error)
            raise type(error)(error if named else self.explain(error)) from None
        except (MemoryError, HashinferError):
            raise
        except Exception as error:
            raise OpError(self.explain(f"{type(error).__name__}: {error}")) from error

    def check_count(self, made: int) -> None:
        """Raise OpError where the node names more outputs than the op makes."""
        if any(self.outputs[made:]):
            raise OpError(f"it names {len(self.outputs)} outputs; the op makes {made}")

    def explain(self, error: HashinferError | str) -> str:
        """An error's text with this step's op and node in front."""
        return at_node(self.label, self.nodes[-1], str(error))


def infer(step: Step, op: Op, ins: Sequence[Operand | None]) -> Sequence[TensorType] | None:
    """`op.infer` for a step, its errors naming the node."""
    with step.named_errors():
        types = op.infer(step.call, ins)
        if types is not None:
            step.check_count(len(types))
        return types


def check_size(step: Step, types: Sequence[TensorType], limit: int) -> None:
    """Raise MemoryLimitError where a step's outputs alone exceed `limit` bytes.

    So does an output without elements whose other dimensions are beyond what NumPy can make.
    """
    size = sum(t.nbytes for t in types)
    extent = max((prod(max(d, 1) for d in t.shape) * t.dtype.itemsize for t in types), default=0)
    if size > limit or extent >= LARGEST_EXTENT:
        shapes = ", ".join(map(str, types))
        raise MemoryLimitError(step.explain(f"its output {shapes} takes {size} bytes; at most {limit} are allowed"))


def evaluate(step: Step, ins: Sequence[Any], limits: Limits) -> list[Any]:
    """Run one step on real values (arrays, or lists for sequences) into fresh arrays.

    Raises OpError naming the node; MemoryLimitError before an output beyond `limits` is made; TimeLimitError where the
    time ends inside the reference implementation.
    """
    if not all(x is None or isinstance(x, np.ndarray) for x in ins):
        return _by_reference(step, ins, limits)
    known = operands(ins)
    op = step.native_op(known)
    if op is None:
        return _by_reference(step, ins, limits)
    with step.named_errors():
        types = op.infer(step.call, known)
        if types is None:
            raise OpError("its output's shape cannot be told from its inputs")
        check_size(step, types, limits.bytes)
        step.check_count(len(types))
        if op.aliases:
            return [np.array(ins[0], order="C").reshape(types[0].shape)]
        outs = [np.empty(t.shape, t.dtype) for t in types]
        step.compute(op, ins, outs)
    return outs


def _by_reference(step: Step, ins: Sequence[Any], limits: Limits) -> list[Any]:
    """The step by onnx's reference implementation, if what it will make is within `limits`."""
    with step.named_errors():
        size = step.reference.output_bytes(step.call, ins)
        if size > limits.bytes:
            raise MemoryLimitError(step.explain(f"its outputs take {size} bytes; at most {limits.bytes} are allowed"))
        made = in_time(limits, step.label, step.nodes[-1], lambda: step.reference.evaluate(step.call, ins))
        step.check_count(len(made))
        return made
