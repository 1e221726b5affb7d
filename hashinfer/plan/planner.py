"""The plan for given input shapes: every type inferred, every buffer placed, every kernel chosen, before a run.

A step whose output types depend on data, or which only the reference implementation has, is dynamic: it allocates as it
runs, and so do the steps behind it that depend on it. Everything else lies in one arena.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hashinfer.errors import MemoryLimitError
from hashinfer.ops.base import Array, Op, Operand, TensorType
from hashinfer.ops.emission import Emission, NativeOp
from hashinfer.ops.hashed import HashedConv, HashedExpand, HashedLookup, HashedProduct, spectrum_held
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.plan.arena import Lifetime, lay_out
from hashinfer.plan.control import is_control
from hashinfer.plan.limits import Limits
from hashinfer.plan.program import Program, Step, check_size, evaluate, infer

FOLD_BYTES, ALL_FOLD_BYTES = 65536, 2**24
"""Values up to this size, and in all, are computed while planning where everything they depend on is known."""

HASHED_OPS = (HashedProduct, HashedConv, HashedLookup, HashedExpand)

Kind = Literal["native", "numpy", "alias", "folded", "dynamic", "reference"]


@dataclass(slots=True)
class PlannedStep:
    """One step and how it runs: as kernels, through NumPy, not at all (alias, folded), or with shapes as they come."""

    step: Step
    kind: Kind
    op: Op | None = None
    types: Sequence[TensorType] = ()
    emission: Emission | None = None
    temps: list[int] = field(default_factory=list)
    """Arena offsets of temporaries: the emission's, or the outputs without a name of what runs through NumPy."""

    @property
    def unnamed(self) -> dict[int, TensorType]:
        """The outputs that nobody asked for, by their numbers."""
        return {k: t for k, (name, t) in enumerate(zip(self.step.outputs, self.types, strict=False)) if not name}

    @property
    def temp_bytes(self) -> Sequence[int]:
        """Of each temporary."""
        if self.emission is not None:
            return self.emission.temps
        return [t.nbytes for t in self.unnamed.values()] if self.kind == "numpy" else ()

    @property
    def dynamic(self) -> bool:
        """Whether its buffers' sizes are only known during the run."""
        return self.kind in ("dynamic", "reference")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value's bytes are: the arena, at offset `index`, or input or output number `index`."""

    kind: Literal["arena", "input", "output"]
    index: int
    type: TensorType


@dataclass(slots=True)
class Plan:
    """A plan for one set of input types. Immutable once built; shared by every call with those types."""

    program: Program
    inputs: tuple[TensorType, ...]
    steps: list[PlannedStep]
    places: dict[str, Place]
    constants: dict[str, Array]
    outputs: list[TensorType | None]
    """None where an output's type is only known after the run."""
    arena_bytes: int
    scratch_bytes: int
    """A thread."""
    weight_bytes: int
    threads: int

    @property
    def dynamic(self) -> bool:
        """Whether any buffer's size is only known during the run."""
        return any(p.dynamic for p in self.steps)

    @property
    def buffer_bytes(self) -> int:
        """What one concurrent call allocates: arena and scratch of all threads."""
        return self.arena_bytes + self.threads * self.scratch_bytes

    @property
    def total_bytes(self) -> int:
        """Weights, buffers of one call, and its outputs."""
        return self.weight_bytes + self.buffer_bytes + sum(t.nbytes for t in self.outputs if t is not None)


def matrices(program: Program) -> list[HashedMatrix]:
    """The hashed matrices of a program and its subgraphs, each once."""
    steps = (step for p in programs(program) for step in p.steps)
    found = {id(step.op.matrix): step.op.matrix for step in steps if isinstance(step.op, HASHED_OPS)}
    return list(found.values())


def programs(program: Program) -> Iterator[Program]:
    """A program and those of its steps' subgraphs, at any depth."""
    pending = [program]
    while pending:
        yield (last := pending.pop())
        for step in last.steps:
            pending.extend(step.subgraphs.values())


def weight_bytes(program: Program) -> int:
    """Bytes of constants and weights, those of subgraphs too, once every spectrum that products use has been taken."""
    constants = {id(c): c.nbytes for p in programs(program) for c in p.constants.values()}
    products = [s.op for p in programs(program) for s in p.steps if isinstance(s.op, HashedProduct | HashedConv)]
    spectra = {(id(op.matrix), *spectrum_held(op)) for op in products}
    tables = {id(op.matrix): op.matrix.table_bytes for op in products if op.matrix.in_range}
    held = sum(m.w.nbytes + m.materialised_bytes for m in matrices(program))
    return sum(constants.values()) + held + sum(size for *_, size in spectra) + sum(tables.values())


def make_plan(program: Program, inputs: Sequence[TensorType], threads: int, limit: int) -> Plan:
    """Plan a run. Raises OpError, naming the node, where shapes do not fit; MemoryLimitError beyond `limit` bytes."""
    builder = _Builder(program, inputs, limit)
    builder.infer_types()
    return builder.place(threads)


class _Builder:
    def __init__(self, program: Program, inputs: Sequence[TensorType], limit: int) -> None:
        self.program = program
        self.inputs = tuple(inputs)
        self.limit = limit
        self.operands: dict[str, Operand] = {name: Operand.of(value) for name, value in program.constants.items()}
        self.operands.update({v.name: Operand(t) for v, t in zip(program.inputs, inputs, strict=True)})
        self.root: dict[str, str] = {}
        """The value whose bytes another one shares."""
        self.steps: list[PlannedStep] = []
        self.produced: dict[str, int] = {}
        self.fold_budget = ALL_FOLD_BYTES

    def infer_types(self) -> None:
        for step in self.program.steps:
            known = [name == "" or name in self.operands for name in step.inputs]
            if not all(known) or step.subgraphs or is_control(step):
                self.steps.append(PlannedStep(step, "dynamic"))
                continue
            ins = step.given(self.operands)
            op = step.native_op(ins)
            if op is None:
                _ = step.reference
                self.steps.append(PlannedStep(step, "reference"))
                continue
            types = infer(step, op, ins)
            if types is None:
                self.steps.append(PlannedStep(step, "dynamic", op))
                continue
            check_size(step, types, self.limit)
            self.steps.append(self._static(step, op, ins, types))

    def _static(self, step: Step, op: Op, ins: Sequence[Operand | None], types: Sequence[TensorType]) -> PlannedStep:
        folded = self._folded(step, op, ins, types)
        if folded is not None:
            self.operands.update({name: Operand.of(value) for name, value in step.named(folded)})
            return PlannedStep(step, "folded", op, types)
        self.operands.update({name: Operand(kind) for name, kind in step.named(types)})
        if op.aliases:
            source = step.inputs[0]
            self.root[step.outputs[0]] = self.root.get(source, source)
            return PlannedStep(step, "alias", op, types)
        self.produced.update(dict.fromkeys(filter(None, step.outputs), len(self.steps)))
        native = isinstance(op, NativeOp) and op.emits(step.call, ins)
        return PlannedStep(step, "native" if native else "numpy", op, types)

    def _folded(
        self, step: Step, op: Op, ins: Sequence[Operand | None], types: Sequence[TensorType]
    ) -> list[Any] | None:
        """The step's values if they are known while planning and small."""
        size = sum(t.nbytes for t in types)
        if size > min(FOLD_BYTES, self.fold_budget) or isinstance(op, HASHED_OPS):
            return None
        if op.shape_only:
            stand_ins = [None if x is None else np.broadcast_to(np.zeros((), x.dtype), x.shape) for x in ins]
            outs = [np.empty(t.shape, t.dtype) for t in types]
            op.run(step.call, stand_ins, outs)
            return outs
        if any(x is not None and x.value is None for x in ins):
            return None
        self.fold_budget -= size
        return evaluate(step, [None if x is None else x.value for x in ins], Limits(FOLD_BYTES))

    def place(self, threads: int) -> Plan:
        outputs = [self.operands.get(name) for name in self.program.outputs]
        places = self._outside_places()
        weights = weight_bytes(self.program)
        fixed = weights + sum(o.type.nbytes for o in outputs if o is not None)
        arena_names = [name for name in self.produced if name not in places]
        lifetimes = self._lifetimes(arena_names)
        self._check_total(fixed + lay_out(lifetimes)[1], "weights, outputs and buffers")
        self._emit()
        lifetimes += [Lifetime(size, k, k) for k, planned in enumerate(self.steps) for size in planned.temp_bytes]
        offsets, arena_bytes = lay_out(lifetimes)
        for name, offset in zip(arena_names, offsets, strict=False):
            places[name] = Place("arena", offset, self.operands[name].type)
        remaining = iter(offsets[len(arena_names) :])
        scratch = 0
        for planned in self.steps:
            planned.temps = [next(remaining) for _ in planned.temp_bytes]
            if planned.emission is not None:
                scratch = max(scratch, planned.emission.scratch)
        scratch = -(-scratch // 128) * 128
        self._check_total(fixed + arena_bytes + threads * scratch, "weights, outputs, buffers and scratch")
        constants = {n: np.asarray(o.value, order="C") for n, o in self.operands.items() if o.value is not None}
        for name, source in self.root.items():
            if source in places:
                places[name] = replace(places[source], type=self.operands[name].type)
            if source in constants and name not in constants:
                constants[name] = constants[source].reshape(self.operands[name].shape)
        return Plan(
            self.program,
            self.inputs,
            self.steps,
            places,
            constants,
            [None if o is None else o.type for o in outputs],
            arena_bytes,
            scratch,
            weights,
            threads,
        )

    def _check_total(self, size: int, what: str) -> None:
        if size > self.limit:
            shapes = ", ".join(map(str, self.inputs))
            raise MemoryLimitError(
                f"the plan for inputs {shapes} takes {size} bytes of {what}; at most {self.limit} are allowed"
            )

    def _outside_places(self) -> dict[str, Place]:
        """Places outside the arena: inputs, and the outputs that a step can write where the caller wants them."""
        given = enumerate(zip(self.program.inputs, self.inputs, strict=True))
        places = {value.name: Place("input", index, kind) for index, (value, kind) in given}
        for index, name in enumerate(self.program.outputs):
            source = self.root.get(name, name)
            if source in self.produced and source not in places:
                places[source] = Place("output", index, self.operands[source].type)
        return places

    def _lifetimes(self, names: Sequence[str]) -> list[Lifetime]:
        last: dict[str, int] = {}
        end = len(self.steps)
        for k, planned in enumerate(self.steps):
            for name in planned.step.uses():
                last[self.root.get(name, name)] = k
        for name in self.program.outputs:
            last[self.root.get(name, name)] = end
        return [Lifetime(self.operands[n].type.nbytes, self.produced[n], last.get(n, self.produced[n])) for n in names]

    def _emit(self) -> None:
        """Emissions of the native steps."""
        for planned in self.steps:
            if planned.kind != "native":
                continue
            assert isinstance(planned.op, NativeOp)  # noqa: S101
            ins = planned.step.given(self.operands)
            with planned.step.named_errors():
                emission = planned.op.emit(planned.step.call, ins, planned.types)
            if not planned.op.leaves_out:
                emission = emission.with_room_for({k: t.nbytes for k, t in planned.unnamed.items()})
            planned.emission = emission
