"""Pooling over windows of [N, C, ...] with any number of spatial axes, and over whole images.

A window's position along an axis is o stride - pad + k dilation, for output o and kernel position k. Outside the kernel
for float32, NumPy takes all o of a k at once, so padding is never made: positions outside the image are left out of the
slices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import pooling
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
from hashinfer.ops.checks import FLOAT32, FLOATS, DTypes, array, need, need_rank, tensor
from hashinfer.ops.convolution import WHOLE, Window, meetings, need_numbers, need_windows
from hashinfer.ops.emission import IN_AND_OUT, NS_PER_ELEMENT, Emission, NativeOp
from hashinfer.ops.reduce import Axes, extreme, lowest, mean


def windows(call: Call, sizes: Shape) -> list[Window]:
    """The windows along each spatial axis, as the attributes say. Raises OpError if they make no sense."""
    kernel = need_numbers(call, "kernel_shape", len(sizes), 0, 1)
    return need_windows(call, sizes, kernel, bool(call.get("ceil_mode", 0)))


TILE = 4096
"""Elements of the planes that make one tile, where a plane has fewer."""
LONGEST_LINE = 2**24
"""The most elements that windows may reach over in the kernel, whose scratch holds a line of them."""


class Pool(NativeOp):
    """What both ops share."""

    dtypes: DTypes = FLOATS
    kernel: Kernel

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X", self.dtypes)
        need_rank(x, 3, "X")
        return [tensor(x.dtype, [*x.shape[:2], *(axis.count for axis in windows(call, x.shape[2:]))])]

    def emits(self, call: Call, ins: Inputs) -> bool:
        x = need(ins, 0, "X")
        if x.dtype != FLOAT32 or x.rank > 4:
            return False
        return all(axis.reach <= LONGEST_LINE for axis in windows(call, x.shape[2:]))

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        x = need(ins, 0, "X")
        along = [WHOLE] * (4 - x.rank) + windows(call, x.shape[2:])
        size, total = prod(x.shape[2:]), prod(x.shape[:2]) if outs[0].size else 0
        planes = max(1, TILE // max(size, 1))
        line = along[-1].reach
        scratch = 4 * (line + pooling.SPARE + along[-1].count)
        args = {**IN_AND_OUT, "planes": planes, "total": total}
        for k, axis in enumerate(along):
            args |= {**axis.args(k), f"end_{k}": axis.pads[1]}
        args |= {"line": line, "padded": int(call.get("count_include_pad", 0))}
        work = NS_PER_ELEMENT * (x.type.size + along[-1].kernel * outs[0].size)
        return Emission.of(self.kernel, -(-total // planes), args, scratch, work)


@register("MaxPool")
class MaxPool(Pool):
    """The largest element of each window. The indices, as a second output, are not native."""

    dtypes = FLOATS | frozenset(map(np.dtype, ("i1", "u1")))
    kernel = pooling.max_pool

    def supports(self, call: Call, ins: Inputs) -> bool:
        return call.outputs == 1

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, (out,) = array(ins, 0), outs
        out[...] = lowest(x.dtype)
        for _, outputs, elements in meetings(windows(call, x.shape[2:])):
            target = out[:, :, *outputs]
            np.maximum(target, x[:, :, *elements], out=target)


@register("AveragePool")
class AveragePool(Pool):
    """The mean of each window. More than two axes, and other dtypes than float32, are not native."""

    kernel = pooling.average_pool

    def supports(self, call: Call, ins: Inputs) -> bool:
        x = optional(ins, 0)
        return x is None or (x.dtype == FLOAT32 and x.rank <= 4)

    def infer(self, call: Call, ins: Inputs) -> Types:
        made = super().infer(call, ins)
        if not self.emits(call, ins):
            raise OpError(f"X is {need(ins, 0, 'X').type}; windows may reach over {LONGEST_LINE} elements")
        return made


@dataclass(eq=False)
class GlobalPool(Op):
    """All spatial axes to one element each. float16 takes a float32 array of the output's size."""

    reduce: Callable[[Array, Axes, Array], None]

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X", FLOATS)
        need_rank(x, 2, "X")
        if 0 in x.shape[2:]:
            raise OpError(f"X is {x.type}; expected images of at least one element")
        return [TensorType(x.dtype, (*x.shape[:2], *[1] * (x.rank - 2)))]

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        self.reduce(x, tuple(range(2, x.ndim)), outs[0])


REGISTRY["GlobalAveragePool"] = GlobalPool(mean)
REGISTRY["GlobalMaxPool"] = GlobalPool(partial(extreme, np.maximum, lowest))
