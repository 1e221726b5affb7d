"""Ops that keep every element as it is: under another shape, in another order, beside others."""

from abc import abstractmethod
from itertools import pairwise
from math import prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.ops.base import (
    Arrays,
    Call,
    Inputs,
    Op,
    Operand,
    Outputs,
    Shape,
    TensorType,
    Types,
    broadcast,
    normalize_axis,
    optional,
    register,
)
from hashinfer.ops.checks import (
    INT64,
    all_given,
    array,
    arrays,
    axis_of,
    given,
    ints_setting,
    ints_value,
    may_need_values,
    need,
    need_ints_setting,
    need_rank,
    need_same_dtype,
    normalize_axes,
    tensor,
    with_dims,
)


class Alias(Op):
    """Input 0's elements, in their order, under the shape that `shape` gives."""

    aliases = True

    @abstractmethod
    def shape(self, call: Call, ins: Inputs, shape: Shape) -> Shape:
        """The new shape, for input 0 of `shape`."""

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "data")
        return [tensor(x.dtype, self.shape(call, ins, x.shape))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        np.copyto(outs[0].reshape(x.shape), x)


@register("Identity")
class Identity(Alias):
    def shape(self, call: Call, ins: Inputs, shape: Shape) -> Shape:
        return shape


@register("Dropout")
class Dropout(Identity):
    """As inference does it: nothing is dropped. A mask output or the training mode are not native."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        training = optional(ins, 2)
        return call.outputs == 1 and (training is None or (training.value is not None and not training.value.any()))


@register("Reshape")
class Reshape(Alias):
    """To the shape asked for: -1 is what is left over; 0 is the old dimension unless allowzero = 1."""

    def shape(self, call: Call, ins: Inputs, shape: Shape) -> Shape:
        asked = ints_value(need(ins, 1, "shape"), "input 1 (shape)")
        allow_zero = bool(call.get("allowzero", 0))
        if any(dim < -1 for dim in asked) or asked.count(-1) > 1:
            raise OpError(f"the shape asked for is {list(asked)}; expected no number below -1 and at most one -1")
        if allow_zero and 0 in asked and -1 in asked:
            raise OpError(f"the shape asked for is {list(asked)}; expected either -1 or 0, with allowzero = 1")
        dims = list(asked)
        for at, dim in enumerate(dims):
            if dim or allow_zero:
                continue
            if at >= len(shape):
                raise OpError(f"the shape asked for is {list(asked)}; {list(shape)} has no dimension {at} to keep")
            dims[at] = shape[at]
        if -1 in dims:
            others = prod(dim for dim in dims if dim != -1)
            if others == 0 or prod(shape) % others:
                raise OpError(f"shape {list(shape)} cannot become {list(asked)}: -1 stands for no whole number")
            dims[dims.index(-1)] = prod(shape) // others
        if prod(shape) != prod(dims):
            raise OpError(f"shape {list(shape)} has {prod(shape)} elements; {list(asked)} would have {prod(dims)}")
        return tuple(dims)


@register("Flatten")
class Flatten(Alias):
    """To two axes: those before `axis` and the others."""

    def shape(self, call: Call, ins: Inputs, shape: Shape) -> Shape:
        axis = int(call.get("axis", 1))
        if not -len(shape) <= axis <= len(shape):
            raise OpError(f"axis is {axis}; expected {-len(shape)} to {len(shape)} for rank {len(shape)}")
        at = axis + len(shape) if axis < 0 else axis
        return (prod(shape[:at]), prod(shape[at:]))


@register("Squeeze")
class Squeeze(Alias):
    """Without the axes given, or without every axis of length 1."""

    def shape(self, call: Call, ins: Inputs, shape: Shape) -> Shape:
        axes = ints_setting(call, ins, "axes", 1, since=13)
        if axes is None:
            return tuple(dim for dim in shape if dim != 1)
        gone = normalize_axes(axes, len(shape))
        for axis in gone:
            if shape[axis] != 1:
                raise OpError(f"axis {axis} of {list(shape)} has length {shape[axis]}; expected 1 to squeeze it")
        return tuple(dim for at, dim in enumerate(shape) if at not in gone)


@register("Unsqueeze")
class Unsqueeze(Alias):
    """With axes of length 1 put in, numbered as they are in the output."""

    def shape(self, call: Call, ins: Inputs, shape: Shape) -> Shape:
        axes, rest = need_ints_setting(call, ins, "axes", 1, since=13), iter(shape)
        new = normalize_axes(axes, len(shape) + len(axes))
        return tuple(1 if at in new else next(rest) for at in range(len(shape) + len(axes)))


@register("Shape")
class ShapeOf(Op):
    """The input's shape, or the part of it from `start` to `end`."""

    shape_only = True

    def part(self, call: Call, shape: Shape) -> Shape:
        return shape[call.get("start", 0) : call.get("end", None)]

    def infer(self, call: Call, ins: Inputs) -> Types:
        return [TensorType(INT64, (len(self.part(call, need(ins, 0, "data").shape)),))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        outs[0][...] = self.part(call, array(ins, 0).shape)


@register("Size")
class Size(Op):
    """The number of elements."""

    shape_only = True

    def infer(self, call: Call, ins: Inputs) -> Types:
        need(ins, 0, "data")
        return [TensorType(INT64, ())]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        outs[0][...] = array(ins, 0).size


@register("Transpose")
class Transpose(Op):
    """The axes in the order `perm`, by default the reverse."""

    def perm(self, call: Call, rank: int) -> tuple[int, ...]:
        perm = tuple(call.get("perm", range(rank)[::-1]))
        if sorted(perm) != list(range(rank)):
            raise OpError(f"perm is {list(perm)}; expected each of the axes 0 to {rank - 1} once")
        return perm

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "data")
        return [TensorType(x.dtype, tuple(x.shape[axis] for axis in self.perm(call, x.rank)))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        np.copyto(outs[0], array(ins, 0).transpose(self.perm(call, array(ins, 0).ndim)))


@register("Expand")
class Expand(Op):
    """The input broadcast with the shape given; either may be the smaller one."""

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "input")
        asked = tensor(x.dtype, ints_value(need(ins, 1, "shape"), "input 1 (shape)"))
        return [tensor(x.dtype, broadcast(x.shape, asked.shape))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        np.copyto(outs[0], array(ins, 0))


@register("Tile")
class Tile(Op):
    """The input repeated along each axis."""

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "input")
        repeats = ints_value(need(ins, 1, "repeats"), "input 1 (repeats)")
        if len(repeats) != x.rank:
            raise OpError(f"repeats are {list(repeats)}; expected {x.rank} of them, one for each axis")
        return [tensor(x.dtype, [dim * times for dim, times in zip(x.shape, repeats, strict=True)])]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, repeats = arrays(ins, 2)
        if outs[0].size:
            sizes = [size for pair in zip(repeats.reshape(-1).tolist(), x.shape, strict=True) for size in pair]
            np.copyto(outs[0].reshape(sizes), x[tuple(part for _ in x.shape for part in (None, slice(None)))])


@register("Concat")
class Concat(Op):
    """The inputs side by side along an axis."""

    def axis(self, call: Call, rank: int) -> int:
        if "axis" not in call.attrs:
            raise OpError("axis is missing")
        return normalize_axis(int(call.attrs["axis"]), rank)

    def infer(self, call: Call, ins: Inputs) -> Types:
        first, *others = all_given(ins)
        need_rank(first, 1, "input 0")
        axis = self.axis(call, first.rank)
        total = first.shape[axis]
        for at, other in enumerate(others, 1):
            need_same_dtype(first, other, f"input {at}")
            same = with_dims(other.shape, axis) == with_dims(first.shape, axis)
            if other.rank != first.rank or not same:
                raise OpError(f"input {at} is {other.type}; expected {first.type} but for axis {axis}")
            total += other.shape[axis]
        return [TensorType(first.dtype, with_dims(first.shape, axis, total))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        parts = given(ins)
        np.concatenate(parts, axis=self.axis(call, parts[0].ndim), out=outs[0])


@register("Split")
class Split(Op):
    """The input cut along an axis: at sizes given (an attribute before opset 13), or into equal parts."""

    def sizes(self, call: Call, ins: Inputs, dim: int) -> tuple[int, ...]:
        sizes = ints_setting(call, ins, "split", 1, since=13)
        if sizes is None:
            # The loader holds num_outputs to the outputs there are.
            parts = call.outputs
            part = -(-dim // parts)
            sizes = (*[part] * (parts - 1), dim - part * (parts - 1))
            if sizes[-1] < 0 or (call.opset < 18 and dim % parts):
                raise OpError(f"an axis of length {dim} cannot be cut into {parts} parts")
        if len(sizes) != call.outputs or sum(sizes) != dim or min(sizes) < 0:
            raise OpError(f"split is {list(sizes)}; expected {call.outputs} sizes that sum to {dim}")
        return sizes

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "input")
        axis = axis_of(call, x.shape, 0)
        sizes = self.sizes(call, ins, x.shape[axis])
        return [TensorType(x.dtype, with_dims(x.shape, axis, size)) for size in sizes]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        axis = axis_of(call, x.shape, 0)
        ends = np.cumsum([0, *(out.shape[axis] for out in outs)]).tolist()
        for out, (start, end) in zip(outs, pairwise(ends), strict=True):
            np.copyto(out, x[(slice(None),) * axis + (slice(start, end),)])


def need_blocks(call: Call, ins: Inputs) -> tuple[Operand, int]:
    """The images and the size of a block. Raises OpError unless both are there."""
    x, block = need(ins, 0, "input"), int(call.get("blocksize", 0))
    if block < 1:
        raise OpError(f"blocksize is {block}; expected 1 or more")
    if x.rank != 4:
        raise OpError(f"input is {x.type}; expected rank 4: [N, C, H, W]")
    return x, block


@register("DepthToSpace")
class DepthToSpace(Op):
    """Channels to blocks of pixels: [N, C b b, H, W] to [N, C, H b, W b]."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        return call.text("mode", "DCR") in {"DCR", "CRD"}

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, block = need_blocks(call, ins)
        n, c, h, w = x.shape
        if c % block**2:
            raise OpError(f"input is {x.type}; expected its {c} channels to be a multiple of blocksize^2, {block**2}")
        return [TensorType(x.dtype, (n, c // block**2, h * block, w * block))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, block = array(ins, 0), call.attrs["blocksize"]
        (n, _, h, w), c = x.shape, outs[0].shape[1]
        blocks = outs[0].reshape(n, c, h, block, w, block)
        if call.text("mode", "DCR") == "DCR":
            np.copyto(blocks, x.reshape(n, block, block, c, h, w).transpose(0, 3, 4, 1, 5, 2))
        else:
            np.copyto(blocks, x.reshape(n, c, block, block, h, w).transpose(0, 1, 4, 2, 5, 3))


@register("SpaceToDepth")
class SpaceToDepth(Op):
    """Blocks of pixels to channels: [N, C, H b, W b] to [N, b b C, H, W]."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        return call.text("mode", "DCR") == "DCR"

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, block = need_blocks(call, ins)
        n, c, h, w = x.shape
        if h % block or w % block:
            raise OpError(f"input is {x.type}; expected height and width to be multiples of blocksize, {block}")
        return [TensorType(x.dtype, (n, c * block**2, h // block, w // block))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, block = array(ins, 0), call.attrs["blocksize"]
        (n, c, _, _), (h, w) = x.shape, outs[0].shape[2:]
        blocks = outs[0].reshape(n, block, block, c, h, w)
        np.copyto(blocks, x.reshape(n, c, h, block, w, block).transpose(0, 3, 5, 1, 2, 4))
