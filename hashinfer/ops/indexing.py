"""Ops that pick elements by position, or put them there."""

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np

from hashinfer.errors import OpError
from hashinfer.ops.base import (
    Array,
    Arrays,
    Call,
    Inputs,
    Op,
    Operand,
    Outputs,
    Shape,
    TensorType,
    Types,
    optional,
    register,
)
from hashinfer.ops.checks import (
    INDICES,
    INTS,
    NUMERIC,
    array,
    arrays,
    axis_of,
    given,
    ints_setting,
    ints_value,
    may_need_values,
    need,
    need_all,
    need_dtype,
    need_index_range,
    need_ints_setting,
    need_rank,
    need_same_dtype,
    normalize_axes,
    operands,
    scalar_value,
    tensor,
    with_dims,
)


def axis_slice(dim: int, start: int, end: int, step: int) -> slice:
    """One axis of ONNX's Slice. A start beyond the front stays on the first element, unlike Python's, if step < 0."""
    start, end = (at + dim if at < 0 else at for at in (start, end))
    if step > 0:
        start, end = (min(max(at, 0), dim) for at in (start, end))
    else:
        start, end = min(max(start, 0), dim - 1), min(max(end, -1), dim - 1)
    if not range(start, end, step):
        return slice(0, 0)
    return slice(start, None if end < 0 else end, step)


@register("Slice")
class Slice(Op):
    """A regular part of the input. Where it starts and ends are attributes before opset 10."""

    def slices(self, call: Call, ins: Inputs) -> tuple[slice, ...]:
        """One slice for each axis."""
        shape = need(ins, 0, "data").shape
        starts = need_ints_setting(call, ins, "starts", 1, since=10)
        ends = need_ints_setting(call, ins, "ends", 2, since=10)
        axes, steps = (ints_setting(call, ins, name, at, since=10) for at, name in ((3, "axes"), (4, "steps")))
        axes = tuple(range(len(starts))) if axes is None else axes
        steps = (1,) * len(starts) if steps is None else steps
        if not len(starts) == len(ends) == len(axes) == len(steps):
            raise OpError(
                f"starts, ends, axes and steps have {len(starts)}, {len(ends)}, {len(axes)} and {len(steps)} elements; "
                "expected equally many"
            )
        if 0 in steps:
            raise OpError(f"steps are {list(steps)}; expected none to be 0")
        result = [slice(None)] * len(shape)
        for axis, start, end, step in zip(normalize_axes(axes, len(shape)), starts, ends, steps, strict=True):
            result[axis] = axis_slice(shape[axis], start, end, step)
        return tuple(result)

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "data")
        parts = zip(self.slices(call, ins), x.shape, strict=True)
        return [TensorType(x.dtype, tuple(len(range(*part.indices(dim))) for part, dim in parts))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        np.copyto(outs[0], array(ins, 0)[self.slices(call, operands(ins))])


@register("Gather")
class Gather(Op):
    """data[..., indices, ...] along one axis. A data operand that is not contiguous is copied."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, indices = need_all(ins, "data", "indices")
        need_dtype(indices, INDICES, "indices")
        axis = axis_of(call, x.shape, 0)
        return [tensor(x.dtype, with_dims(x.shape, axis, *indices.shape))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, indices, axis = along_axis(call, ins)
        if outs[0].size:
            # mode="raise" would write to a copy of `out` first.
            np.take(x, indices, axis=axis, out=outs[0], mode="wrap")


def along_axis(call: Call, ins: Arrays) -> tuple[Array, Array, int]:
    """Data, indices and the axis they go along. Raises OpError for an index out of range."""
    x, indices = arrays(ins, 2)
    axis = axis_of(call, x.shape, 0)
    need_index_range(indices, x.shape[axis])
    return x, indices, axis


def elements(call: Call, ins: Arrays) -> tuple[Array, tuple[Array, ...]]:
    """Data, and what picks an element of it for each of the indices. Raises OpError for an index out of range."""
    x, indices, axis = along_axis(call, ins)
    grid: list[Array] = list(np.ogrid[tuple(slice(dim) for dim in indices.shape)])
    grid[axis] = indices
    return x, tuple(grid)


def need_elements_indices(call: Call, x: Operand, indices: Operand) -> int:
    """The axis. Raises OpError unless the indices fit into x but for that axis."""
    need_rank(x, 1, "data")
    need_dtype(indices, INDICES, "indices")
    axis = axis_of(call, x.shape, 0)
    if indices.rank != x.rank or any(
        i > dim for at, (i, dim) in enumerate(zip(indices.shape, x.shape, strict=True)) if at != axis
    ):
        raise OpError(f"indices are {indices.type}; expected at most {list(x.shape)} but for axis {axis}")
    return axis


@register("GatherElements")
class GatherElements(Op):
    """out[i, j] = data[indices[i, j], j], for axis 0. Takes an array as large as the output on the way."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, indices = need_all(ins, "data", "indices")
        need_elements_indices(call, x, indices)
        return [TensorType(x.dtype, indices.shape)]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, picked = elements(call, ins)
        np.copyto(outs[0], x[picked])


def tuple_depth(x: Operand, indices: Operand, batch: int = 0) -> int:
    """How many axes, behind `batch` of them, an index tuple names. Raises OpError unless data and indices fit."""
    need_dtype(indices, INDICES, "indices")
    need_rank(x, 1, "data")
    need_rank(indices, 1, "indices")
    if not 0 <= batch < min(x.rank, indices.rank) or x.shape[:batch] != indices.shape[:batch]:
        raise OpError(f"data is {x.type} and indices are {indices.type}; expected {batch} batch axes in common")
    depth = indices.shape[-1]
    if not 1 <= depth <= x.rank - batch:
        raise OpError(f"indices are {indices.type}; expected a last axis of 1 to {x.rank - batch}")
    return depth


def need_tuple_range(indices: Array, shape: Shape) -> None:
    """Raise OpError unless every index tuple, along the last axis, is within `shape`."""
    for at in range(indices.shape[-1]):
        need_index_range(indices[..., at], shape[at])


@register("GatherND")
class GatherND(Op):
    """The parts of data that index tuples name. Takes an array as large as the output on the way."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, indices = need_all(ins, "data", "indices")
        batch = int(call.get("batch_dims", 0))
        depth = tuple_depth(x, indices, batch)
        return [tensor(x.dtype, (*indices.shape[:-1], *x.shape[batch + depth :]))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, indices = arrays(ins, 2)
        batch = int(call.get("batch_dims", 0))
        need_tuple_range(indices, x.shape[batch:])
        rank = indices.ndim - 1
        grid = [np.arange(dim).reshape(-1, *[1] * (rank - at - 1)) for at, dim in enumerate(indices.shape[:batch])]
        np.copyto(outs[0], x[(*grid, *np.moveaxis(indices, -1, 0))])


REDUCTIONS: dict[str, np.ufunc] = {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


class ScatterOp(Op):
    """What both scatter ops share. With indices that occur twice and no reduction, the last one counts."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        return call.text("reduction", "none") in {"none", *REDUCTIONS}

    def types(self, call: Call, ins: Inputs) -> tuple[Operand, Operand, Operand]:
        x, indices, updates = need_all(ins, "data", "indices", "updates")
        need_same_dtype(x, updates, "updates")
        if call.text("reduction", "none") != "none":
            need_dtype(x, NUMERIC, "data")
        return x, indices, updates

    @np.errstate(all="ignore")
    def scatter(self, call: Call, x: Array, index: tuple[Array, ...], updates: Array, out: Array) -> None:
        """x with `updates` put into it, or combined with what is there."""
        np.copyto(out, x)
        if (reduction := call.text("reduction", "none")) == "none":
            out[index] = updates
        else:
            REDUCTIONS[reduction].at(out, index, updates)


@register("Scatter", "ScatterElements")
class ScatterElements(ScatterOp):
    """data with out[indices[i, j], j] = updates[i, j], for axis 0."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, indices, updates = self.types(call, ins)
        need_elements_indices(call, x, indices)
        if updates.shape != indices.shape:
            raise OpError(f"updates are {updates.type}; expected the shape of the indices, {list(indices.shape)}")
        return [x.type]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, picked = elements(call, ins)
        self.scatter(call, x, picked, array(ins, 2), outs[0])


@register("ScatterND")
class ScatterND(ScatterOp):
    """data with the parts that index tuples name replaced."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, indices, updates = self.types(call, ins)
        expected = (*indices.shape[:-1], *x.shape[tuple_depth(x, indices) :])
        if updates.shape != expected:
            raise OpError(f"updates are {updates.type}; expected shape {list(expected)}")
        return [x.type]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, indices, updates = arrays(ins, 3)
        need_tuple_range(indices, x.shape)
        self.scatter(call, x, tuple(np.moveaxis(indices, -1, 0)), updates, outs[0])


@register("OneHot")
class OneHot(Op):
    """`on` where the new axis is at the index, `off` elsewhere and for indices out of range."""

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        indices, values = need(ins, 0, "indices"), need(ins, 2, "values")
        need_dtype(indices, NUMERIC, "indices")
        if values.shape != (2,):
            raise OpError(f"values are {values.type}; expected shape [2]: off and on")
        depth = scalar_value(need(ins, 1, "depth"), NUMERIC, "input 1 (depth)")
        if not isfinite(depth):
            raise OpError(f"depth is {depth}; expected a finite number")
        axis = axis_of(call, (*indices.shape, 2), -1)
        return [tensor(values.dtype, (*indices.shape[:axis], int(depth), *indices.shape[axis:]))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        indices, values = array(ins, 0), array(ins, 2)
        axis = axis_of(call, outs[0].shape, -1)
        depth = outs[0].shape[axis]
        off, on = values
        outs[0][...] = off
        hot = np.moveaxis(outs[0], axis, -1)[None]
        with np.errstate(all="ignore"):
            at = indices.astype(np.int64)[None]
        valid = np.nonzero((at >= -depth) & (at < depth))
        if depth:
            hot[(*valid, at[valid] % depth)] = on


@register("Trilu")
class Trilu(Op):
    """The upper or lower triangle of the last two axes, zero elsewhere; `k` moves the diagonal.

    Takes two bytes for each element of a matrix on the way.
    """

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, k = need(ins, 0, "input"), optional(ins, 1)
        need_rank(x, 2, "input")
        if k is not None and (k.dtype not in INTS or k.shape not in {(), (1,)}):
            raise OpError(f"k is {k.type}; expected an integer")
        return [x.type]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, k = array(ins, 0), sum(int(value.reshape(())) for value in given(ins[1:2]))
        rows, columns = x.shape[-2:]
        if x.size == 0:
            return
        upper, k = bool(call.get("upper", 1)), min(max(k, -rows), columns)
        below = np.tri(rows, columns, k - 1 if upper else k, bool)
        outs[0][...] = 0
        np.copyto(outs[0], x, where=~below if upper else below)


def reflect_source(at: Array, dim: int) -> Array:
    period = max(2 * (dim - 1), 1)
    return np.minimum(at % period, period - at % period) if dim > 1 else np.zeros_like(at)


PAD_SOURCES: dict[str, Callable[[Array, int], Array]] = {
    "edge": lambda at, dim: np.clip(at, 0, dim - 1),
    "reflect": reflect_source,
    "wrap": lambda at, dim: at % dim,
}
"""By mode: the positions within an axis of `dim` elements that those before 0 and from `dim` on are copies of."""


@register("Pad")
class Pad(Op):
    """The input with elements put before and after it, or taken away where a pad is negative.

    Takes an array as large as the padding of one axis on the way, unless the mode is constant.
    """

    def supports(self, call: Call, ins: Inputs) -> bool:
        return call.text("mode", "constant") in {"constant", *PAD_SOURCES}

    def pads(self, call: Call, ins: Inputs) -> list[tuple[int, int]]:
        """Elements before and after, for each axis."""
        shape = need(ins, 0, "data").shape
        pads = need_ints_setting(call, ins, "pads", 1, since=11)
        given = optional(ins, 3) if call.opset >= 18 else None
        axes = range(len(shape)) if given is None else ints_value(given, "input 3 (axes)")
        if len(pads) != 2 * len(axes):
            raise OpError(f"pads are {list(pads)}; expected {2 * len(axes)} of them, two for each axis")
        result = [(0, 0)] * len(shape)
        for at, axis in enumerate(normalize_axes(axes, len(shape))):
            result[axis] = (pads[at], pads[at + len(axes)])
        return result

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x, fill = need(ins, 0, "data"), optional(ins, 2) if call.opset >= 11 else None
        if fill is not None:
            need_same_dtype(x, fill, "input 2 (constant_value)")
            if fill.type.size != 1:
                raise OpError(f"input 2 (constant_value) is {fill.type}; expected a scalar")
        pads = self.pads(call, ins)
        repeats = call.text("mode", "constant") != "constant"
        for axis, (dim, (before, after)) in enumerate(zip(x.shape, pads, strict=True)):
            left = dim + min(before, 0) + min(after, 0)
            if left < 0:
                raise OpError(f"pads of axis {axis} are {before} and {after}; it has only {dim} elements to take away")
            if repeats and left == 0 and max(before, after) > 0:
                raise OpError(f"axis {axis} has no element that the padding could repeat")
        return [tensor(x.dtype, [dim + sum(pad) for dim, pad in zip(x.shape, pads, strict=True)])]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, (out,) = array(ins, 0), outs
        pads = self.pads(call, operands(ins))
        inner = [slice(max(a, 0), dim - max(b, 0)) for (a, b), dim in zip(pads, out.shape, strict=True)]
        cropped = x[tuple(slice(max(-a, 0), dim - max(-b, 0)) for (a, b), dim in zip(pads, x.shape, strict=True))]
        mode = call.text("mode", "constant")
        if mode == "constant":
            out[...] = self.fill(call, ins)
        np.copyto(out[tuple(inner)] if inner else out, cropped)
        for axis, (before, after) in enumerate(pads if mode != "constant" else ()):
            view = np.moveaxis(out[tuple([slice(None)] * axis + inner[axis:])], axis, 0)
            whole = np.moveaxis(out[tuple([slice(None)] * (axis + 1) + inner[axis + 1 :])], axis, 0)
            dim, source = len(view), PAD_SOURCES[mode]
            if before > 0:
                whole[:before] = view[source(np.arange(-before, 0), dim)]
            if after > 0:
                whole[-after:] = view[source(np.arange(dim, dim + after), dim)]

    def fill(self, call: Call, ins: Arrays) -> Any:
        if call.opset < 11:
            return call.get("value", 0.0)
        value = optional(ins, 2)
        return 0 if value is None else value.reshape(())
