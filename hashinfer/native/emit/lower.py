"""A plan as a list of native operations on symbolic memory: what the driver function is generated from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np

from hashinfer.errors import InputError, MemoryLimitError, UnsupportedError
from hashinfer.kernels.arguments import NO_LIMIT, float_argument
from hashinfer.kernels.jit import Kernel
from hashinfer.model.graph import Model, ValueType
from hashinfer.ops.base import Array, TensorType
from hashinfer.ops.emission import Argument, Buffer, KernelCall, NativeOp, aligned
from hashinfer.ops.hashed import HashedLookup
from hashinfer.plan.fuse import fuse
from hashinfer.plan.planner import Plan, PlannedStep, make_plan
from hashinfer.plan.rows import check_rows

NATIVE_KINDS = ("native", "alias", "folded")


@dataclass(frozen=True, slots=True)
class Memory:
    """A place: `offset` bytes into the scratch, into a constant, or into an input or output of the row at hand."""

    kind: Literal["scratch", "constant", "input", "output"]
    number: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Invoke:
    """Every tile of one kernel. args: a number that an index of the target can hold, or a place, for each field."""

    kernel: Kernel
    tiles: int
    args: tuple[int | Memory, ...]


@dataclass(frozen=True, slots=True)
class CheckIds:
    """Indices, int32 or int64, that must be at least -rows and below rows."""

    ids: Memory
    item: int
    count: int
    rows: int


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes from one place to another: an output that no step can write where the caller wants it."""

    source: Memory
    target: Memory
    size: int


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. type: of one row, or of all there is; shape: as declared; grows: with the batch."""

    name: str
    onnx_type: str
    type: TensorType
    shape: tuple[int | str | None, ...]
    grows: bool

    @property
    def stride(self) -> int:
        """Bytes to the next row."""
        return self.type.nbytes if self.grows else 0


@dataclass(slots=True)
class Lowered:
    """A model as native operations. batched: any number of rows, run one by one; if not, a call is one run."""

    inputs: list[Port]
    outputs: list[Port]
    batched: bool
    operations: list[Invoke | CheckIds | Copy] = field(default_factory=list)
    constants: list[Array] = field(default_factory=list)
    scratch_start: int = 0
    """Where the kernels' own scratch begins, behind the arena."""
    scratch_bytes: int = 0

    def kernels(self) -> list[Kernel]:
        """The kernels in use, each once, by name."""
        found = {o.kernel.name: o.kernel for o in self.operations if isinstance(o, Invoke)}
        return [found[name] for name in sorted(found)]


def lower(model: Model, shapes: Mapping[str, tuple[int, ...]], limit: int, bits: int) -> Lowered:
    """Plan a model for one row, or for the shapes given, and lower the plan for addresses of 32 or 64 bits.

    Raises UnsupportedError, naming the node, for what has no kernels or mixes the rows of a batch; InputError where a
    dimension beside the batch is open and no shape is given; MemoryLimitError for what is over the limit, or more than
    the target can address.
    """
    limit = min(limit, 2 ** (bits - 1) - 1)
    program = fuse(model.graph)
    for name in shapes:
        if name not in [v.name for v in program.inputs]:
            known = ", ".join(repr(v.name) for v in program.inputs)
            raise InputError(f"a shape is given for {name!r}; the model has no input {name!r}, it has {known}")
    open_inputs = [
        v.name for v in program.inputs if v.name not in shapes and v.shape and not isinstance(v.shape[0], int)
    ]
    plan = make_plan(program, [_one_row(v, shapes) for v in program.inputs], 1, limit)
    _check_native(plan)
    if open_inputs:
        check_rows(plan, open_inputs, limit)
    out = Lowered([], [], bool(open_inputs))
    for value, kind in zip(program.inputs, plan.inputs, strict=True):
        grows = value.name in open_inputs
        shape = (value.shape or ())[:1] + kind.shape[1:] if grows else kind.shape
        out.inputs.append(Port(value.name, value.onnx_type, kind, shape, grows))
    for value, output in zip(model.graph.outputs, plan.outputs, strict=True):
        assert output is not None  # noqa: S101
        shape = output.shape
        if open_inputs:
            shape = (value.shape[0] if value.shape and output.shape[0] == 1 else None, *output.shape[1:])
        out.outputs.append(Port(value.name, value.onnx_type, output, shape, bool(open_inputs)))
    _Lowering(plan, out, bits).work()
    held = max([sum(c.nbytes for c in out.constants), *(port.type.nbytes for port in (*out.inputs, *out.outputs))])
    if held + out.scratch_bytes > limit:
        raise MemoryLimitError(f"the model takes {held + out.scratch_bytes} bytes; at most {limit} are allowed")
    return out


def _one_row(value: ValueType, shapes: Mapping[str, tuple[int, ...]]) -> TensorType:
    if value.dtype is None or value.dtype.hasobject:
        raise UnsupportedError(f"input {value.name!r} is {value.onnx_type}; native code takes tensors of numbers")
    if value.name in shapes:
        return TensorType(value.dtype, shapes[value.name])
    if value.shape is None:
        raise InputError(f"input {value.name!r} may have any shape; give one")
    for axis, size in enumerate(value.shape):
        if axis and not isinstance(size, int):
            raise InputError(f"input {value.name!r}: dimension {axis} ({size or '?'}) is open; give the input's shape")
    return TensorType(value.dtype, tuple(d if isinstance(d, int) else 1 for d in value.shape))


def _check_native(plan: Plan) -> None:
    for planned in plan.steps:
        if planned.kind not in NATIVE_KINDS:
            ins = ", ".join(n for n in planned.step.inputs if n)
            raise UnsupportedError(
                planned.step.explain(f"it has no kernels for its operands ({ins}); native code needs them")
            )
        op = planned.op
        looks = isinstance(op, NativeOp) and type(op).check_values is not NativeOp.check_values
        if looks and not isinstance(op, HashedLookup):
            raise UnsupportedError(planned.step.explain("it looks at its operands' values; native code does not"))


class _Lowering:
    def __init__(self, plan: Plan, out: Lowered, bits: int) -> None:
        self.plan = plan
        self.out = out
        self.bits = bits
        self.numbers: dict[tuple[str, tuple[int, ...], bytes], int] = {}
        self.arena = aligned(plan.arena_bytes)

    def work(self) -> None:
        for planned in self.plan.steps:
            if planned.kind == "native":
                self._step(planned)
        for index, (name, port) in enumerate(zip(self.plan.program.outputs, self.out.outputs, strict=True)):
            place = self.plan.places.get(name)
            if place is None or (place.kind, place.index) != ("output", index):
                copy = Copy(self._value(name), Memory("output", index), port.type.nbytes)
                self.out.operations.append(copy)
        self.out.scratch_start = self.arena
        self.out.scratch_bytes = self.arena + self.plan.scratch_bytes

    def _step(self, planned: PlannedStep) -> None:
        assert planned.emission is not None  # noqa: S101
        if isinstance(planned.op, HashedLookup):
            name = planned.step.inputs[0]
            place = self.plan.places.get(name)
            ids = self.plan.constants[name] if place is None else place.type
            rows = planned.op.matrix.scheme.rows
            check = CheckIds(self._value(name), ids.dtype.itemsize, prod(ids.shape), rows)
            self.out.operations.append(check)
        for call in planned.emission.calls:
            self.out.operations.append(self._call(planned, call))

    def _call(self, planned: PlannedStep, call: KernelCall) -> Invoke:
        args = tuple(self._argument(planned, call.args.get(name, 0)) for name in call.kernel.fields)
        return Invoke(call.kernel, call.tiles, args)

    def _argument(self, planned: PlannedStep, value: Argument) -> int | Memory:
        if callable(value):
            value = value()
        if isinstance(value, np.ndarray):
            return self._constant(self._table(value))
        if isinstance(value, Buffer):
            if value.kind == "temp":
                return Memory("scratch", 0, planned.temps[value.number] + value.offset)
            names = planned.step.inputs if value.kind == "in" else planned.step.outputs
            if not names[value.number]:
                return 0
            found = self._value(names[value.number])
            return Memory(found.kind, found.number, found.offset + value.offset)
        return self._index(float_argument(value) if isinstance(value, float) else int(value))

    def _table(self, array: Array) -> Array:
        """An array that is a kernel's own: whole numbers of 64 bits are indices."""
        if array.dtype != np.int64 or self.bits == 64:
            return array
        return np.array([self._index(k) for k in array.ravel().tolist()], np.int32).reshape(array.shape)

    def _index(self, value: int) -> int:
        """A number as the target's intp holds it."""
        if self.bits == 64:
            return value
        if value == NO_LIMIT:
            return 2**31 - 1
        if not -(2**31) <= value < 2**31:
            raise MemoryLimitError(f"the model counts up to {value}, beyond what a {self.bits}-bit target can address")
        return value

    def _value(self, name: str) -> Memory:
        place = self.plan.places.get(name)
        if place is None:
            return self._constant(self.plan.constants[name])
        if place.kind == "arena":
            return Memory("scratch", 0, place.index)
        return Memory(place.kind, place.index)

    def _constant(self, array: Array) -> Memory:
        data = np.ascontiguousarray(array)
        key = (data.dtype.str, data.shape, data.tobytes())
        if key not in self.numbers:
            self.numbers[key] = len(self.out.constants)
            self.out.constants.append(data)
        return Memory("constant", self.numbers[key])
