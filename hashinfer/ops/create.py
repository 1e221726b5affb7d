"""Ops that make a tensor from attributes or from a few numbers."""

from math import ceil, isfinite
from typing import Any

import numpy as np

from hashinfer.errors import OpError
from hashinfer.ops.base import NATIVE_DTYPES, Array, Arrays, Call, Inputs, Op, Outputs, TensorType, Types, register
from hashinfer.ops.blockwise import BLOCK
from hashinfer.ops.checks import (
    FLOATS,
    INTS,
    array,
    ints_value,
    may_need_values,
    need,
    need_same_dtype,
    scalar_value,
    tensor,
)

CONSTANT_DTYPES: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def constant(call: Call) -> Array | None:
    """The value that a Constant node's attribute gives, None if it is of a kind that is not native."""
    value = call.get("value", None)
    if isinstance(value, np.ndarray):
        return value if value.dtype in NATIVE_DTYPES else None
    for name, dtype in CONSTANT_DTYPES.items():
        if name in call.attrs:
            return np.asarray(call.attrs[name], dtype=dtype)
    return None


@register("Constant")
class Constant(Op):
    """A tensor, a number or a list of numbers. Strings and sparse tensors are not native."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        return constant(call) is not None

    def infer(self, call: Call, ins: Inputs) -> Types:
        if (value := constant(call)) is None:
            raise OpError(f"attributes are {sorted(call.attrs)}; expected one of value, {', '.join(CONSTANT_DTYPES)}")
        return [TensorType(value.dtype, value.shape)]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        outs[0][...] = constant(call)


@register("ConstantOfShape")
class ConstantOfShape(Op):
    """A tensor of one value, by default float32 zeros, of the shape given."""

    def value(self, call: Call) -> Array:
        value: Array = np.asarray(call.get("value", np.float32(0)))
        if value.size != 1:
            raise OpError(f"value has {value.size} elements; expected 1")
        return value.reshape(())

    def supports(self, call: Call, ins: Inputs) -> bool:
        return np.asarray(call.get("value", np.float32(0))).dtype in NATIVE_DTYPES

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        return [tensor(self.value(call).dtype, ints_value(need(ins, 0, "shape"), "input 0 (shape)"))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        outs[0][...] = self.value(call)


@register("Range")
class Range(Op):
    """start, start + delta, ... short of limit."""

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        bounds = [need(ins, at, what) for at, what in enumerate(("start", "limit", "delta"))]
        for at, bound in enumerate(bounds):
            need_same_dtype(bounds[0], bound, f"input {at}")
        start, limit, delta = (scalar_value(bound, INTS | FLOATS, f"input {at}") for at, bound in enumerate(bounds))
        if delta == 0 or not all(isfinite(value) for value in (start, limit, delta)):
            raise OpError(f"start, limit and delta are {start}, {limit}, {delta}; expected finite ones, delta not 0")
        if isinstance(start, int):
            count = -((start - limit) // delta)
        elif isfinite(steps := (limit - start) / delta):
            count = ceil(steps)
        else:
            raise OpError(f"start, limit and delta are {start}, {limit}, {delta}; expected a finite number of steps")
        return [TensorType(bounds[0].dtype, (max(count, 0),))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        start, delta = array(ins, 0).reshape(()), array(ins, 2).reshape(())
        (out,) = outs
        wide: np.dtype[Any] = np.dtype(np.int64 if out.dtype in INTS else np.float64)
        with np.errstate(all="ignore"):
            for begin in range(0, out.size, BLOCK):
                count = np.arange(begin, min(begin + BLOCK, out.size), dtype=wide)
                count = count * delta.astype(wide) + start.astype(wide)
                np.copyto(out[begin : begin + BLOCK], count, casting="unsafe")
