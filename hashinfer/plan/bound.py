"""A plan bound to memory of its own: what one call at a time runs. Nothing is allocated here once it is built."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hashinfer.kernels.pool import Pool, Program
from hashinfer.native.runtime import address
from hashinfer.ops.base import Array, TensorType
from hashinfer.ops.emission import KernelCall, NativeOp, Relocation, aligned_empty, assemble
from hashinfer.plan.control import keep, run_step
from hashinfer.plan.limits import Limits
from hashinfer.plan.planner import Place, Plan, PlannedStep
from hashinfer.plan.program import Step

WORTH_SHARING_NS = 40_000
"""Estimated work of calls of several tiles, below which waking a worker costs more than it saves."""

PIECE_NS = 20_000_000
"""Estimated work after which a native program ends, so that time limits and interrupts are looked at."""

Values = dict[str, Any]
Action = Callable[[], object]


External = tuple[memoryview, int, bool, int]
"""What a native program knows one of the call's own arrays by: the program's arrays, which of them, whether the array
is an output of the call, and its number."""


class BoundPlan:
    """One arena, its views and its native programs. Not for two calls at once."""

    def __init__(self, plan: Plan, pool: Pool, limit: int) -> None:
        self.plan = plan
        self.pool = pool
        self.open = Limits(limit - plan.total_bytes)
        """What a run without a time limit has for its dynamic values."""
        self.left = _Left(self.open)
        self.memory = aligned_empty(plan.buffer_bytes)
        self.base = address(self.memory)
        self.values: Values = dict(plan.constants)
        self.kept: list[object] = []
        self.externals: list[External] = []
        for name, place in plan.places.items():
            if place.kind == "arena":
                self.values[name] = self._view(place.index, place.type)
        self.input_aliases = [(name, place) for name, place in plan.places.items() if place.kind != "arena"]
        self.dynamic_names = {name for p in plan.steps if p.dynamic for name in p.step.outputs if name}
        self.dying = {
            id(p): [name for name in names if name in self.dynamic_names]
            for p, names in zip(plan.steps, plan.program.dying, strict=True)
        }
        self.heads: list[Step] = []
        """The step that each action begins with."""
        self.actions = self._actions()
        self.all_native = self._is_all_native()

    def _view(self, offset: int, kind: TensorType) -> Array:
        view: Array = self.memory[offset : offset + kind.nbytes].view(kind.dtype).reshape(kind.shape)
        return view

    def _is_all_native(self) -> bool:
        """Whether kernels do everything, each output where the caller wants it, and nothing looks at the values."""
        places = [self.plan.places.get(name) for name in self.plan.program.outputs]
        in_place = all(p is not None and (p.kind, p.index) == ("output", k) for k, p in enumerate(places))
        return in_place and all(
            p.kind in ("alias", "folded") or (p.kind == "native" and _checking(p) is None) for p in self.plan.steps
        )

    def run(self, inputs: Sequence[Array], outputs: list[Any], seconds: float | None = None) -> list[Any]:
        """Run on C-contiguous inputs of the plan's types. `outputs`: arrays to write, None for a dynamic one.

        Returns the outputs. Raises OpError where data is out of a table, TimeLimitError where steps are left after
        `seconds`, MemoryLimitError where dynamic values would take more than is left; inputs and `outputs` must not
        overlap.
        """
        for arrays, k, is_output, index in self.externals:
            arrays[k] = id(outputs[index] if is_output else inputs[index])
        if self.all_native and seconds is None:
            for action in self.actions:
                action()
            return outputs
        values, plan = self.values, self.plan
        left = self.left
        left.limits = self.open if seconds is None else Limits.starting(self.open.bytes, seconds)
        for name, place in self.input_aliases:
            array = inputs[place.index] if place.kind == "input" else outputs[place.index]
            values[name] = (
                array if array is None or array.shape == place.type.shape else array.reshape(place.type.shape)
            )
        try:
            for action, head in zip(self.actions, self.heads, strict=True):
                left.limits.check_time(head.label, head.nodes[-1])
                action()
            return [self._result(k, name, outputs[k], inputs) for k, name in enumerate(plan.program.outputs)]
        finally:
            for name, _ in self.input_aliases:
                values[name] = None
            for name in self.dynamic_names:
                values.pop(name, None)

    def _result(self, index: int, name: str, out: Array | None, inputs: Sequence[Array]) -> Any:
        value = self.values[name]
        if out is None:
            if not isinstance(value, np.ndarray):
                return value
            # A dynamic step may hand on an input, a constant, or the very array that another output is.
            first = self.plan.program.outputs.index(name) == index
            own = first and value.flags.owndata and value.flags.writeable and name not in self.plan.constants
            return value if own and not any(np.may_share_memory(value, x) for x in inputs) else value.copy()
        place = self.plan.places.get(name)
        if place is None or place.kind != "output" or place.index != index:
            np.copyto(out, value)
        return out

    def _actions(self) -> list[Action]:
        actions: list[Action] = []
        run: list[PlannedStep] = []
        work = 0.0

        def add(action: Action, planned: PlannedStep) -> None:
            actions.append(action)
            self.heads.append(planned.step)

        def flush() -> None:
            nonlocal work
            if run:
                add(self._native(run), run[0])
                run.clear()
                work = 0.0

        for planned in self.plan.steps:
            if planned.kind == "native":
                assert planned.emission is not None  # noqa: S101
                op = _checking(planned)
                if op is not None:
                    flush()
                    add(self._check(planned.step, op), planned)
                run.append(planned)
                work += planned.emission.work
                if work >= PIECE_NS:
                    flush()
            elif planned.kind == "numpy":
                flush()
                add(self._numpy(planned), planned)
            elif planned.dynamic:
                flush()
                add(self._dynamic(planned), planned)
        flush()
        return actions

    def _native(self, planned: Sequence[PlannedStep]) -> Action:
        owned = [(call, p) for p in planned if p.emission is not None for call in p.emission.calls]
        assembled = assemble([call for call, _ in owned])
        taken: list[tuple[bool, int]] = []
        places: list[tuple[int, int]] = []
        for relocation in assembled.relocations:
            external = self._relocate(assembled.code, relocation, owned[relocation.step][1])
            if external is not None:
                taken.append((external.kind == "output", external.index))
                places.append((relocation.step * assembled.code.shape[1] + relocation.column, relocation.buffer.offset))
        scratch = self.base + self.plan.arena_bytes
        program = Program(assembled.code, scratch, self.plan.scratch_bytes, places)
        self.kept += [*assembled.kept, program]
        self.externals += [(program.arrays, k, *which) for k, which in enumerate(taken)]
        shared = self.pool.threads > 1 and worth_sharing(call for call, _ in owned)
        return partial(self.pool.run, program) if shared else program.run

    def _relocate(self, code: Any, relocation: Relocation, owner: PlannedStep) -> Place | None:
        """Fill in the address, or give the place of the call's own array whose address it is."""
        buffer, at = relocation.buffer, (relocation.step, relocation.column)
        if buffer.kind == "temp":
            code[at] = self.base + owner.temps[buffer.number] + buffer.offset
            return None
        name = (owner.step.inputs if buffer.kind == "in" else owner.step.outputs)[buffer.number]
        place = self.plan.places.get(name)
        if name and place is not None and place.kind != "arena":
            return place
        # An output that nobody asked for: the kernel sees that its address is 0.
        code[at] = address(self.values[name]) + buffer.offset if name else 0
        return None

    def _check(self, step: Step, op: NativeOp) -> Action:
        values = self.values

        def action() -> None:
            with step.named_errors():
                op.check_values(step.given(values))

        return action

    def _numpy(self, planned: PlannedStep) -> Action:
        step, op, values = planned.step, planned.op, self.values
        assert op is not None  # noqa: S101
        unnamed = zip(planned.temps, planned.unnamed.items(), strict=True)
        spare = {k: self._view(offset, kind) for offset, (k, kind) in unnamed}

        def action() -> None:
            ins = step.given(values)
            outs: list[Any] = [values[name] if name else spare[k] for k, name in enumerate(step.outputs)]
            with step.named_errors():
                step.compute(op, ins, outs)

        return action

    def _dynamic(self, planned: PlannedStep) -> Action:
        step, memory, left, dying = planned.step, self.memory, self.left, self.dying[id(planned)]
        values = self.values

        def action() -> None:
            made = run_step(step, values, left.limits)
            left.limits = left.limits.without(keep(step, _detached(made, memory), dying, values))

        return action


def worth_sharing(calls: Iterable[KernelCall]) -> bool:
    """Whether threads share a program of these calls, where there are several; if not, one thread runs it alone."""
    return sum(call.work for call in calls if call.tiles > 1) >= WORTH_SHARING_NS


@dataclass(slots=True)
class _Left:
    """What is left to the run that is going on."""

    limits: Limits


def _detached(value: Any, memory: Array) -> Any:
    """`value`, copied where it is a view of the arena, whose room later steps use again; lists item by item."""
    if isinstance(value, list):
        return [_detached(item, memory) for item in value]
    if isinstance(value, np.ndarray) and np.may_share_memory(value, memory):
        return value.copy()
    return value


def _checking(planned: PlannedStep) -> NativeOp | None:
    """The op of a step that looks at its inputs' values before its kernels run."""
    op = planned.op
    return op if isinstance(op, NativeOp) and type(op).check_values is not NativeOp.check_values else None
