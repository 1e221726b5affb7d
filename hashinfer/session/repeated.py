"""A call like the one before it: the same types in, so that its checks and its plan are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from hashinfer.ops.base import Array
from hashinfer.plan.planner import Plan
from hashinfer.session.face import Kind
from hashinfer.session.plans import PlanKey


@dataclass(frozen=True, slots=True)
class Repeated:
    """What calls with inputs of these types lead to, where every output's type is known beforehand.

    Whatever it does not recognise at a glance goes the long way, with all checks and all errors.
    """

    key: PlanKey
    plan: Plan
    inputs: Sequence[tuple[str, np.dtype[Any], tuple[int, ...]]]
    outputs: Sequence[Kind]

    @classmethod
    def of(cls, names: Iterable[str], key: PlanKey, plan: Plan) -> Self | None:
        """For a plan that has been made; None where an output is only known from the data, or named twice."""
        outputs = [(kind.dtype, kind.shape) for kind in plan.outputs if kind is not None]
        if len(outputs) != len(plan.outputs) or len(set(plan.program.outputs)) != len(outputs):
            return None
        inputs = [(name, kind.dtype, kind.shape) for name, kind in zip(names, plan.inputs, strict=True)]
        return cls(key, plan, inputs, outputs)

    def arrays(self, feed: Any) -> list[Array] | None:
        """The feed's arrays in order, if it is a dict of plain arrays of just these types."""
        if type(feed) is not dict or len(feed) != len(self.inputs):
            return None
        arrays = []
        for name, dtype, shape in self.inputs:
            array = feed.get(name)
            # One dtype object stands for each native type; another equal one only costs the long way.
            if type(array) is not np.ndarray or array.dtype is not dtype or array.shape != shape:
                return None
            if not array.flags.c_contiguous:
                return None
            arrays.append(array)
        return arrays

    def targets(self, out: Any, inputs: Sequence[Array] | None) -> list[Array] | None:
        """Arrays to write: new ones, or the caller's if they are a list that plainly fits and overlaps nothing."""
        if inputs is None:
            return None
        if out is None:
            return [np.empty(shape, dtype) for dtype, shape in self.outputs]
        if type(out) is not list or len(out) != 1 or len(self.outputs) != 1:
            return None
        array, (dtype, shape) = out[0], self.outputs[0]
        if type(array) is not np.ndarray or array.dtype is not dtype or array.shape != shape:
            return None
        if not array.flags.carray or any(np.may_share_memory(array, x) for x in inputs):
            return None
        return [array]
