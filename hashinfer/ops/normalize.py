"""Normalisations: softmax, and to zero mean, unit variance or unit norm.

float16 is computed in float32: those ops take one float32 array as large as the input. float32 and float64 work
in the output's memory and take arrays of the reduced shape only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from math import prod
from typing import Concatenate, ParamSpec, TypeVar

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import rowwise
from hashinfer.kernels.jit import Kernel
from hashinfer.ops.base import (
    REGISTRY,
    Array,
    Arrays,
    Call,
    Inputs,
    Op,
    Outputs,
    Shape,
    TensorType,
    Types,
    optional,
    register,
)
from hashinfer.ops.blockwise import blockwise
from hashinfer.ops.checks import (
    FLOAT16,
    FLOAT32,
    FLOATS,
    ONNX_DTYPES,
    DType,
    array,
    arrays,
    axis_of,
    given,
    need,
    need_all,
    need_broadcasts_to,
    need_dtype,
    need_rank,
    need_same_dtype,
    reduced,
)
from hashinfer.ops.emission import IN_AND_OUT, Argument, Arguments, Buffer, Emission, KernelOrNumPy, NativeOp
from hashinfer.ops.reduce import Axes, lowest, mean, norm, sum_of_squares

Settings = ParamSpec("Settings")
Result = TypeVar("Result")


def widened(
    function: Callable[Concatenate[Array, Array, Settings], Result],
) -> Callable[Concatenate[Array, Array, Settings], Result]:
    """Make function(x, out, ...) compute in float32 where they are float16."""

    @wraps(function)
    @np.errstate(all="ignore")
    def wrapped(x: Array, out: Array, /, *args: Settings.args, **more: Settings.kwargs) -> Result:
        if out.dtype != FLOAT16:
            return function(x, out, *args, **more)
        wide = x.astype(FLOAT32)
        result = function(wide, wide, *args, **more)
        np.copyto(out, wide, casting="unsafe")
        return result

    return wrapped


def subtract_top(x: Array, out: Array, axes: Axes) -> None:
    """Subtract the largest element, so that no power overflows."""
    np.subtract(x, np.maximum.reduce(x, axis=axes, keepdims=True, initial=lowest(x.dtype)), out=out)


@widened
def softmax(x: Array, out: Array, axes: Axes) -> None:
    """exp(x) over its sum along `axes`. `out` may be x."""
    subtract_top(x, out, axes)
    np.exp(out, out=out)
    np.divide(out, np.add.reduce(out, axis=axes, keepdims=True), out=out)


@widened
def log_softmax(x: Array, out: Array, axes: Axes) -> None:
    """The logarithm of softmax. `out` may be x, but then x is copied."""
    x = x.copy() if out is x else x
    subtract_top(x, out, axes)
    np.exp(out, out=out)
    log_sum = np.log(np.add.reduce(out, axis=axes, keepdims=True))
    subtract_top(x, out, axes)
    np.subtract(out, log_sum, out=out)


NS_PER_SOFTMAX, NS_PER_NORMALISED, TILE_ELEMENTS = 4.0, 1.5, 4096
"""Rough times of an element, in nanoseconds; elements of a tile of rows."""


def rows_emission(kernel: Kernel, shape: Shape, first: int, ns: float, **more: Argument) -> Emission:
    """A kernel of hashinfer.kernels.rowwise over rows that are the axes from `first` on."""
    rows, cols = prod(shape[:first]), prod(shape[first:])
    together = max(1, TILE_ELEMENTS // max(cols, 1))
    args = {**IN_AND_OUT, "rows": rows, "cols": cols, "rows_per_tile": together, **more}
    return Emission.of(kernel, -(-rows // together), args, 0, ns * rows * cols)


@dataclass(eq=False)
class SoftmaxOp(NativeOp):
    """Along `axis`; before opset 13 over all axes from `axis` on, as if they were one."""

    function: Callable[[Array, Array, Axes], None]

    def axes(self, call: Call, shape: Shape) -> Axes:
        if call.opset >= 13:
            return (axis_of(call, shape, -1),)
        return tuple(range(axis_of(call, shape, 1), len(shape)))

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "input", FLOATS)
        self.axes(call, x.shape)
        return [x.type]

    def emits(self, call: Call, ins: Inputs) -> bool:
        x = need(ins, 0, "input")
        rank = x.rank
        return rank > 0 and self.axes(call, x.shape)[-1:] == (rank - 1,) and x.dtype == FLOAT32

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        shape = outs[0].shape
        kernel = rowwise.softmax_rows if self.function is softmax else rowwise.log_softmax_rows
        return rows_emission(kernel, shape, self.axes(call, shape)[0], NS_PER_SOFTMAX)

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        if x.size:
            self.function(x, outs[0], self.axes(call, x.shape))


REGISTRY["Softmax"] = SoftmaxOp(softmax)
REGISTRY["LogSoftmax"] = SoftmaxOp(log_softmax)


@widened
def standardize(
    x: Array, out: Array, axes: Axes, epsilon: float, scale: Array, bias: Array | None, center: bool = True
) -> tuple[Array | None, Array]:
    """(x - mean) / sqrt(variance + epsilon) scale + bias, with the statistics along `axes`.

    Without `center`, the mean is left out. Returns the mean and the factor. `out` may be x.
    """
    shape = reduced(x.shape, axes)
    average = None
    if center:
        average = np.empty(shape, x.dtype)
        mean(x, axes, average)
        np.subtract(x, average, out=out)
        x = out
    factor = np.empty(shape, x.dtype)
    sum_of_squares(x, axes, factor)
    np.divide(factor, x.size // max(factor.size, 1), out=factor)
    np.add(factor, epsilon, out=factor)
    np.sqrt(factor, out=factor)
    np.reciprocal(factor, out=factor)
    np.multiply(x, factor, out=out)
    np.multiply(out, scale.astype(out.dtype, copy=False), out=out)
    if bias is not None:
        np.add(out, bias.astype(out.dtype, copy=False), out=out)
    return average, factor


def epsilon_of(call: Call) -> float:
    return float(call.get("epsilon", 1e-5))


@dataclass(eq=False)
class AxisNormalization(NativeOp):
    """LayerNormalization, and without `center` RMSNormalization: they work on all axes from `axis` on.

    `stash_type` names the dtype to compute in; float64 stays float64 all the same. The statistics, where the node
    asks for them, have that dtype: the mean, and one over the standard deviation.
    """

    center: bool

    def supports(self, call: Call, ins: Inputs) -> bool:
        return int(call.get("stash_type", 1)) in ONNX_DTYPES and self.stash(call) in FLOATS

    def stash(self, call: Call) -> DType:
        return ONNX_DTYPES[int(call.get("stash_type", 1))]

    def infer(self, call: Call, ins: Inputs) -> Types:
        if self.center and call.outputs > 3:
            raise OpError(f"the node names {call.outputs} outputs; expected at most 3")
        x, scale = need_all(ins, "X", "scale")
        bias = optional(ins, 2) if self.center else None
        need_dtype(x, FLOATS, "X")
        axis = axis_of(call, x.shape, -1)
        for operand, what in ((scale, "scale"), (bias, "bias")):
            if operand is not None:
                need_dtype(operand, FLOATS, what)
                need_broadcasts_to(operand.shape, x.shape, what)
        kept = reduced(x.shape, range(axis, x.rank))
        return [x.type, *[TensorType(self.stash(call), kept)] * (call.outputs - 1)]

    def emits(self, call: Call, ins: Inputs) -> bool:
        x, *others = given(ins)
        row = x.shape[axis_of(call, x.shape, -1) :]
        plain = self.center and call.outputs == 1 and self.stash(call) == FLOAT32
        return plain and x.dtype == FLOAT32 and all((o.dtype, o.shape) == (FLOAT32, row) for o in others)

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        shape = outs[0].shape
        more: Arguments = {"epsilon": epsilon_of(call), "scale": Buffer("in", 1)}
        if optional(ins, 2) is not None:
            more["bias"] = Buffer("in", 2)
        first = axis_of(call, shape, -1)
        return rows_emission(rowwise.layer_norm_rows, shape, first, NS_PER_NORMALISED, **more)

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, scale = arrays(ins, 2)
        bias = optional(ins, 2) if self.center else None
        axes = tuple(range(axis_of(call, x.shape, -1), x.ndim))
        stats = standardize(x, outs[0], axes, epsilon_of(call), scale, bias, self.center)
        for value, stat in zip(outs[1:], stats, strict=False):
            value[...] = stat


REGISTRY["LayerNormalization"] = AxisNormalization(center=True)
REGISTRY["RMSNormalization"] = AxisNormalization(center=False)


def per_channel(values: Array, rank: int) -> Array:
    """A vector of C values, to go with [N, C, ...]."""
    return values.reshape(-1, *[1] * (rank - 2))


def need_vectors(ins: Inputs, length: int, *whats: str) -> None:
    """Raise OpError unless the inputs from number 1 on are float vectors of that length."""
    for at, what in enumerate(whats, 1):
        operand = need(ins, at, what, FLOATS)
        if operand.shape != (length,):
            raise OpError(f"{what} is {operand.type}; expected shape [{length}]")


@register("BatchNormalization")
class BatchNormalization(Op):
    """As inference does it, with the statistics given. X: [N, C, ...]. The training mode is not native."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        return call.outputs == 1 and not call.get("training_mode", 0) and bool(call.get("spatial", 1))

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X", FLOATS)
        channels = x.shape[1] if x.rank > 1 else 1
        need_vectors(ins, channels, "scale", "B", "input_mean", "input_var")
        return [x.type]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, (out,) = array(ins, 0), outs
        wide = np.result_type(x, FLOAT32)
        scale, bias, average, variance = (array(ins, at).astype(wide, copy=False) for at in range(1, 5))
        with np.errstate(all="ignore"):
            factor = scale / np.sqrt(variance + epsilon_of(call))
            shift = per_channel(bias - average * factor, max(x.ndim, 2))
            factor = per_channel(factor, max(x.ndim, 2))
            if x.dtype == wide:
                np.multiply(x, factor, out=out)
                np.add(out, shift, out=out)
            else:
                blockwise(lambda x, factor, shift: x * factor + shift, [x, factor, shift], out, [wide] * 3)


@register("InstanceNormalization")
class InstanceNormalization(KernelOrNumPy):
    """Every channel of every instance by itself. X: [N, C, ...], scale and B: [C]."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "input", FLOATS)
        need_rank(x, 3, "input")
        need_vectors(ins, x.shape[1], "scale", "B")
        _, scale, bias = need_all(ins, "input", "scale", "B")
        need_same_dtype(x, scale, "scale")
        need_same_dtype(x, bias, "B")
        return [x.type]

    def emits(self, call: Call, ins: Inputs) -> bool:
        x = need(ins, 0, "input")
        return x.dtype == FLOAT32 and 0 not in x.shape

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        shape = outs[0].shape
        more: Arguments = {"scale": Buffer("in", 1), "bias": Buffer("in", 2), "channels": shape[1]}
        more["epsilon"] = epsilon_of(call)
        return rows_emission(rowwise.instance_norm_rows, shape, 2, NS_PER_NORMALISED, **more)

    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, *values = arrays(ins, 3)
        scale, bias = (per_channel(value, x.ndim) for value in values)
        standardize(x, outs[0], tuple(range(2, x.ndim)), epsilon_of(call), scale, bias)


@register("GroupNormalization")
class GroupNormalization(Op):
    """Groups of neighbouring channels together. X: [N, C, ...]; scale and bias: [C], before opset 21 [groups].

    An X that is not contiguous is copied.
    """

    def supports(self, call: Call, ins: Inputs) -> bool:
        return int(call.get("stash_type", 1)) == 1

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X", FLOATS)
        need_rank(x, 3, "X")
        groups, channels = int(call.get("num_groups", 0)), x.shape[1]
        if groups < 1 or channels % groups:
            raise OpError(f"num_groups is {groups}; expected a divisor of the {channels} channels")
        need_vectors(ins, channels if call.opset >= 21 else groups, "scale", "bias")
        return [x.type]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, *values = arrays(ins, 3)
        groups = int(call.attrs["num_groups"])
        scale, bias = (value.reshape(groups, -1, *[1] * (x.ndim - 2)) for value in values)
        grouped: Shape = (x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
        axes = tuple(range(2, len(grouped)))
        standardize(x.reshape(grouped), outs[0].reshape(grouped), axes, epsilon_of(call), scale, bias)


@widened
def over_norm(x: Array, out: Array, axis: int, p: int) -> None:
    size = np.empty(reduced(x.shape, (axis,)), x.dtype)
    if p == 1:
        np.add.reduce(np.abs(x), axis=axis, keepdims=True, out=size)
    else:
        norm(x, (axis,), size)
    size[size == 0] = 1
    np.divide(x, size, out=out)


@register("LpNormalization")
class LpNormalization(Op):
    """x over its 1- or 2-norm along an axis; 0 where the norm is 0. p = 1 takes an array as large as the input."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "input", FLOATS)
        axis_of(call, x.shape, -1)
        if call.get("p", 2) not in {1, 2}:
            raise OpError(f"p is {call.get('p', 2)}; expected 1 or 2")
        return [x.type]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        over_norm(x, outs[0], axis_of(call, x.shape, -1), call.get("p", 2))
