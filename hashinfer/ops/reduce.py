"""Reductions along axes, and what else goes along an axis in order: ArgMax, TopK, CumSum."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import reductions
from hashinfer.kernels.elementwise import TILE
from hashinfer.ops.base import (
    REGISTRY,
    Array,
    Arrays,
    Call,
    Inputs,
    Op,
    Outputs,
    TensorType,
    Types,
    normalize_axis,
    register,
)
from hashinfer.ops.checks import (
    BOOL,
    FLOAT16,
    FLOAT32,
    FLOATS,
    INDICES,
    INT64,
    INTS,
    NUMERIC,
    DType,
    DTypes,
    array,
    arrays,
    axis_of,
    ints_setting,
    may_need_values,
    need,
    need_all,
    need_dtype,
    need_one_element,
    normalize_axes,
    operands,
    reduced,
    scalar_value,
    wide_dtype,
    with_dims,
)
from hashinfer.ops.emission import IN_AND_OUT, NS_PER_ELEMENT, Buffer, Emission, KernelOrNumPy

Axes = tuple[int, ...]


def total(ufunc: np.ufunc, x: Array, axes: Axes, out: Array) -> None:
    """Fold `ufunc` over `axes` into `out`, which keeps them. float16 takes a float32 array of out's size."""
    wide = wide_dtype(out.dtype)
    if wide == out.dtype:
        ufunc.reduce(x, axis=axes, out=out, keepdims=True)
    else:
        np.copyto(out, ufunc.reduce(x, axis=axes, dtype=wide, keepdims=True), casting="unsafe")


def sum_of_squares(x: Array, axes: Axes, out: Array) -> None:
    """Sum of x^2 over `axes` into `out`, which keeps them. float16 takes a float32 copy of x."""
    wide = wide_dtype(x.dtype)
    x = x.astype(wide, copy=False)
    if not x.size:
        out.fill(0)
        return
    letters = list(range(x.ndim))
    kept = [axis for axis in letters if axis not in axes]
    target = out.reshape([x.shape[axis] for axis in kept])
    if wide == out.dtype:
        np.einsum(x, letters, x, letters, kept, out=target)
    else:
        np.copyto(target, np.einsum(x, letters, x, letters, kept), casting="unsafe")


@dataclass(eq=False)
class Reduction(KernelOrNumPy):
    """`axes` (an attribute before opset `since`) folded into one element each; all axes by default.

    reduce(x, axes, out) writes the result to `out`, where the reduced axes have length 1. kind: the one of
    hashinfer.kernels.reductions that does it for float32 over neighbouring axes, if there is one.
    """

    reduce: Callable[[Array, Axes, Array], None]
    kind: str = ""
    since: int = 18
    dtypes: DTypes = NUMERIC
    needs_elements: bool = False

    def axes(self, call: Call, ins: Inputs, rank: int) -> Axes:
        axes = ints_setting(call, ins, "axes", 1, self.since)
        if axes:
            return normalize_axes(axes, rank)
        return () if call.opset >= self.since and call.get("noop_with_empty_axes", 0) else tuple(range(rank))

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "data", self.dtypes)
        axes = self.axes(call, ins, x.rank)
        kept = reduced(x.shape, axes)
        if self.needs_elements and 0 in x.shape and 0 not in kept:
            raise OpError(f"data is {x.type}; expected some elements to reduce")
        if not call.get("keepdims", 1):
            kept = tuple(dim for at, dim in enumerate(x.shape) if at not in axes)
        return [TensorType(x.dtype, kept)]

    def emits(self, call: Call, ins: Inputs) -> bool:
        x = need(ins, 0, "data")
        if self.kind not in reductions.KINDS or x.dtype != FLOAT32:
            return False
        axes = sorted(self.axes(call, ins, x.rank))
        joined = axes == list(range(axes[0], axes[-1] + 1)) if axes else False
        return joined and x.type.size > 0

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        shape = need(ins, 0, "data").shape
        axes = sorted(self.axes(call, ins, len(shape)))
        outer, count, inner = prod(shape[: axes[0]]), prod(shape[axes[0] : axes[-1] + 1]), prod(shape[axes[-1] + 1 :])
        args = {**IN_AND_OUT, "outer": outer, "count": count}
        together = max(1, TILE // (count * inner))
        args |= {"inner": inner, "outer_per_tile": together, "kind": reductions.KINDS.index(self.kind)}
        work, scratch = NS_PER_ELEMENT * outer * count * inner, reductions.SCRATCH_BYTES
        return Emission.of(reductions.reduce_middle, -(-outer // together), args, scratch, work)

    @np.errstate(all="ignore")
    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        axes = self.axes(call, operands(ins), x.ndim)
        self.reduce(x, axes, outs[0].reshape(reduced(x.shape, axes)))


def lowest(dtype: DType) -> Any:
    """What every number of the dtype is at least."""
    return dtype.type(-np.inf) if dtype in FLOATS else np.iinfo(dtype).min if dtype in INTS else False


def highest(dtype: DType) -> Any:
    """What every number of the dtype is at most."""
    return dtype.type(np.inf) if dtype in FLOATS else np.iinfo(dtype).max if dtype in INTS else True


def extreme(ufunc: np.ufunc, end: Callable[[DType], Any], x: Array, axes: Axes, out: Array) -> None:
    """The largest or least element; `end` is the least or largest of a dtype."""
    ufunc.reduce(x, axis=axes, out=out, keepdims=True, initial=end(x.dtype))


def mean(x: Array, axes: Axes, out: Array) -> None:
    """The mean over `axes` into `out`, which keeps them. float16 takes a float32 array of out's size."""
    count = x.size // out.size if out.size else 1
    if out.dtype == FLOAT16:
        np.copyto(out, np.add.reduce(x, axis=axes, dtype=FLOAT32, keepdims=True) / np.float32(count), casting="unsafe")
    else:
        np.add.reduce(x, axis=axes, out=out, keepdims=True)
        np.divide(out, count, out=out)


def any_mean(x: Array, axes: Axes, out: Array) -> None:
    """Of integers: rounded towards zero; takes an int64 array and a float64 array of the output's size."""
    if out.dtype in FLOATS:
        mean(x, axes, out)
    else:
        whole = np.add.reduce(x, axis=axes, keepdims=True, dtype=INT64)
        np.copyto(out, whole / (x.size // max(out.size, 1)), casting="unsafe")


def norm(x: Array, axes: Axes, out: Array) -> None:
    """The Euclidean norm over `axes` into `out`, which keeps them. Integers and float16 take a wider copy of x."""
    if out.dtype in {FLOAT32, np.dtype(np.float64)}:
        sum_of_squares(x, axes, out)
        np.sqrt(out, out=out)
    else:
        wide = np.zeros(out.shape, FLOAT32 if x.dtype == FLOAT16 else np.float64)
        norm(x.astype(wide.dtype), axes, wide)
        np.copyto(out, wide, casting="unsafe")


def log_sum(x: Array, axes: Axes, out: Array) -> None:
    sums = np.add.reduce(x, axis=axes, keepdims=True, dtype=wide_dtype(x.dtype))
    np.copyto(out, np.log(sums), casting="unsafe")


def log_sum_exp(x: Array, axes: Axes, out: Array) -> None:
    """Takes an array as large as the input on the way (of float32 for float16, of float64 for integers)."""
    wide = wide_dtype(x.dtype) if x.dtype in FLOATS else np.dtype(np.float64)
    top = np.maximum.reduce(x, axis=axes, keepdims=True, initial=lowest(x.dtype)).astype(wide)
    top = np.where(np.isinf(top), wide.type(0), top)
    powers = np.empty(x.shape, wide)
    np.subtract(x, top, out=powers, dtype=wide)
    np.exp(powers, out=powers)
    np.copyto(out, np.log(np.add.reduce(powers, axis=axes, keepdims=True)) + top, casting="unsafe")


REGISTRY["ReduceSum"] = Reduction(partial(total, np.add), "sum", since=13)
REGISTRY["ReduceProd"] = Reduction(partial(total, np.multiply))
REGISTRY["ReduceMax"] = Reduction(partial(extreme, np.maximum, lowest), "max", dtypes=NUMERIC | BOOL)
REGISTRY["ReduceMin"] = Reduction(partial(extreme, np.minimum, highest), "min", dtypes=NUMERIC | BOOL)
REGISTRY["ReduceMean"] = Reduction(any_mean, "mean", needs_elements=True)
# Takes an array as large as the input on the way.
REGISTRY["ReduceL1"] = Reduction(lambda x, axes, out: total(np.add, np.abs(x), axes, out))
REGISTRY["ReduceSumSquare"] = Reduction(sum_of_squares)
REGISTRY["ReduceL2"] = Reduction(norm)
REGISTRY["ReduceLogSum"] = Reduction(log_sum)
REGISTRY["ReduceLogSumExp"] = Reduction(log_sum_exp)


@dataclass(eq=False)
class ArgReduction(Op):
    """The index of the largest or smallest element of an axis; of equal ones the first, or the last if asked.

    NumPy takes a copy of an input whose axis is not the last.
    """

    function: Any

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "data", NUMERIC)
        axis = axis_of(call, x.shape, 0)
        if x.shape[axis] == 0:
            raise OpError(f"data is {x.type}; expected axis {axis} to have some elements")
        kept = (1,) if call.get("keepdims", 1) else ()
        return [TensorType(INT64, with_dims(x.shape, axis, *kept))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        axis = axis_of(call, x.shape, 0)
        out = outs[0].reshape(with_dims(x.shape, axis))
        if call.get("select_last_index", 0):
            self.function(np.flip(x, axis), axis=axis, out=out)
            np.subtract(x.shape[axis] - 1, out, out=out)
        else:
            self.function(x, axis=axis, out=out)


REGISTRY["ArgMax"] = ArgReduction(np.argmax)
REGISTRY["ArgMin"] = ArgReduction(np.argmin)


@register("TopK")
class TopK(KernelOrNumPy):
    """The k largest or smallest elements of an axis, in order, and their indices; of equal ones the first.

    They come in order even where `sorted` is 0. Outside the kernel, which is for few of float32, it takes an int64
    array as large as the input on the way.
    """

    few = 64

    def types(self, call: Call, ins: Inputs) -> tuple[int, int]:
        """The axis and k."""
        x = need(ins, 0, "X", NUMERIC)
        axis = axis_of(call, x.shape, -1)
        k = int(call.get("k", -1)) if call.opset < 10 else scalar_value(need(ins, 1, "K"), INDICES, "input 1 (K)")
        if not 0 <= k <= x.shape[axis]:
            raise OpError(f"k is {k}; expected 0 to {x.shape[axis]}, the length of axis {axis}")
        return axis, k

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X")
        axis, k = self.types(call, ins)
        shape = with_dims(x.shape, axis, k)
        return [TensorType(x.dtype, shape), TensorType(INT64, shape)][: call.outputs]

    def emits(self, call: Call, ins: Inputs) -> bool:
        return need(ins, 0, "X").dtype == FLOAT32 and 0 < self.types(call, ins)[1] <= self.few

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        shape = need(ins, 0, "X").shape
        axis, k = self.types(call, ins)
        outer, count, inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
        args = {**IN_AND_OUT, "count": count}
        args |= {"inner": inner, "k": k, "least": int(not call.get("largest", 1))}
        if len(outs) > 1:
            args["indices"] = Buffer("out", 1)
        work = 10 * NS_PER_ELEMENT * outer * count * inner
        return Emission.of(reductions.top_elements, outer * inner, args, 12 * k, work, f"{k} of {count}")

    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        axis, k = self.types(call, operands(ins))
        if call.get("largest", 1):
            # A stable sort of the reverse, read backwards, has equal elements in their order.
            order = x.shape[axis] - 1 - np.flip(np.argsort(np.flip(x, axis), axis=axis, kind="stable"), axis)
        else:
            order = np.argsort(x, axis=axis, kind="stable")
        order = order[(slice(None),) * axis + (slice(k),)]
        np.copyto(outs[0], np.take_along_axis(x, order, axis))
        if len(outs) > 1:
            np.copyto(outs[1], order)


@register("CumSum")
class CumSum(Op):
    """Sums of the elements up to each one, of those before it (`exclusive`), or from the end (`reverse`)."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, axis = need_all(ins, "x", "axis")
        need_dtype(x, NUMERIC, "x")
        need_dtype(axis, INDICES, "axis")
        need_one_element(axis, "axis")
        if axis.value is not None:
            normalize_axis(int(axis.value.reshape(())), x.rank)
        return [x.type]

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, at = arrays(ins, 2)
        axis = normalize_axis(int(at.reshape(())), x.ndim)
        source, target = np.moveaxis(x, axis, 0), np.moveaxis(outs[0], axis, 0)
        if call.get("reverse", 0):
            source, target = source[::-1], target[::-1]
        if call.get("exclusive", 0):
            target[:1] = 0
            np.add.accumulate(source[:-1], axis=0, out=target[1:])
        else:
            np.add.accumulate(source, axis=0, out=target)
