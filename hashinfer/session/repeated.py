"""A call like the one before it: the same types in, so that its checks and its plan are known."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy import empty, ndarray

from hashinfer.ops.base import Array
from hashinfer.plan.planner import Plan
from hashinfer.session.face import Kind
from hashinfer.session.plans import PlanCache


@dataclass(frozen=True, slots=True)
class Repeated:
    """What calls with inputs of these types lead to, where every output's type is known beforehand.

    Whatever it does not recognise at a glance goes the long way, with all checks and all errors.
    """

    plan: Plan
    plans: PlanCache
    inputs: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]
    outputs: Sequence[Kind]

    @classmethod
    def of(cls, names: Iterable[str], plan: Plan, plans: PlanCache) -> Self | None:
        """For a plan that has been made; None where an output is only known from the data, or named twice."""
        outputs = [(kind.dtype, kind.shape) for kind in plan.outputs if kind is not None]
        if len(outputs) != len(plan.outputs) or len(set(plan.program.outputs)) != len(outputs):
            return None
        inputs = [(name, kind.dtype, kind.shape) for name, kind in zip(names, plan.inputs, strict=True)]
        return cls(plan, plans, inputs, outputs)

    def run(self, feed: Any, out: Any, seconds: float | None) -> list[Any] | None:
        """The outputs for a dict of plain arrays of just these types and, if given, plain arrays to write; else None.

        Raises what BoundPlan.run does.
        """
        if type(feed) is not dict or len(feed) != len(self.inputs):
            return None
        arrays: list[Array] = []
        for name, dtype, shape in self.inputs:
            array = feed.get(name)
            # One dtype object stands for each native type; another equal one only costs the long way.
            if type(array) is not ndarray or array.dtype is not dtype or array.shape != shape:
                return None
            if not array.flags.c_contiguous:
                return None
            arrays.append(array)
        targets: list[Array] = []
        if out is None:
            # A comprehension would be a call.
            for dtype, shape in self.outputs:
                targets.append(empty(shape, dtype))
        else:
            given = self._given(out, arrays)
            if given is None:
                return None
            targets.append(given)
        last = self.plans.last
        try:
            bound = last.pop()
        except IndexError:
            bound = self.plans.take(self.plan)
        if bound.plan is not self.plan:
            self.plans.give(bound)
            bound = self.plans.take(self.plan)
        try:
            return bound.run(arrays, targets, seconds)
        finally:
            if last:
                self.plans.give(bound)
            else:
                last.append(bound)

    def _given(self, out: Any, inputs: Sequence[Array]) -> Array | None:
        """The caller's array, if it is in a list, plainly fits and overlaps no input."""
        if type(out) is not list or len(out) != 1 or len(self.outputs) != 1:
            return None
        array: Array = out[0]
        dtype, shape = self.outputs[0]
        if type(array) is not ndarray or array.dtype is not dtype or array.shape != shape:
            return None
        if not array.flags.carray or any(np.may_share_memory(array, x) for x in inputs):
            return None
        return array
