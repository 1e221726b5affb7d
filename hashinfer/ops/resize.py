"""Resizing along any axes: each axis on its own, an output as the weighted sum of a few inputs.

Takes arrays as large as the input or the output on the way: axes that shrink come first. Antialiasing, aspect ratios
that are kept, and regions of interest are left to the reference implementation.
"""

from dataclasses import dataclass
from functools import partial
from math import floor, prod
from typing import Any

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import resampling
from hashinfer.ops.base import Array, Arrays, Call, Inputs, Outputs, Types, optional, register
from hashinfer.ops.checks import (
    FLOAT32,
    FLOATS,
    array,
    ints_value,
    known,
    may_need_values,
    need,
    need_dtype,
    normalize_axes,
    operands,
    tensor,
    with_dims,
)
from hashinfer.ops.emission import NS_PER_ELEMENT, Arguments, Buffer, Emission, KernelCall, KernelOrNumPy

TAPS = {"nearest": 1, "linear": 2, "cubic": 4}
"""The modes, and how many inputs of an axis make an output."""
COORDINATES = ("half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric")
BLOCK, LONGEST = 4096, 2**16
"""Outputs along an axis that NumPy makes at once, and the most of which a kernel has a table."""
NEAREST = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


DEFAULTS = {
    "mode": "nearest",
    "coordinate_transformation_mode": "half_pixel",
    "nearest_mode": "round_prefer_floor",
    "keep_aspect_ratio_policy": "stretch",
}


def setting(call: Call, name: str) -> str:
    """An attribute that names one of several ways."""
    return call.text(name, DEFAULTS[name])


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis that changes: its sizes, and outputs for each input."""

    at: int
    size: int
    out: int
    scale: float


def coordinates(axis: Axis, block: slice, mode: str) -> Array:
    """float64: where each output of a block lies among the inputs."""
    x = np.arange(block.start, block.stop, dtype=np.float64)
    if mode == "asymmetric":
        return x / axis.scale
    if mode == "align_corners":
        # By onnx's reference the output's length is not rounded here, but a length that was given stays what it is.
        length = axis.size * axis.scale
        length = axis.out if abs(length - axis.out) < 1e-9 * length else length
        return x * (axis.size - 1) / (length - 1) if length != 1 else x * 0
    if mode == "pytorch_half_pixel" and axis.out <= 1:
        return x * 0
    half = (x + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        return half + axis.size / 2 * (1 - axis.out / (axis.size * axis.scale))
    return half


def nearest(where: Array, mode: str) -> Array:
    """float64: coordinates as whole numbers."""
    if mode == "floor":
        return np.floor(where)
    if mode == "ceil":
        return np.ceil(where)
    return np.ceil(where - 0.5) if mode == "round_prefer_floor" else np.floor(where + 0.5)


def taps(where: Array, size: int, mode: str, a: float, exclude: bool) -> tuple[Array, Array]:
    """(int64 [taps, out] inputs, float64 [taps, out] weights), the inputs beyond the ends being the last ones there."""
    base = np.floor(where)
    f = where - base
    if mode == "linear":
        offsets, weights = np.arange(2), np.stack([1 - f, f])
    else:
        offsets = np.arange(-1, 3)
        near = [((a + 2) * t - (a + 3)) * t * t + 1 for t in (f, 1 - f)]
        far = [((a * t - 5 * a) * t + 8 * a) * t - 4 * a for t in (1 + f, 2 - f)]
        weights = np.stack([far[0], near[0], near[1], far[1]])
    found = base.astype(np.int64) + offsets[:, None]
    if exclude:
        weights = np.where((found >= 0) & (found < size), weights, 0)
        weights = weights / weights.sum(0)
    return np.clip(found, 0, size - 1), weights


@register("Resize")
class Resize(KernelOrNumPy):
    """To other sizes of some axes. Inputs: X, region of interest, scales, sizes."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        x, mode = optional(ins, 0), setting(call, "mode")
        plain = setting(call, "coordinate_transformation_mode") in COORDINATES and not call.get("antialias", 0)
        kept = setting(call, "keep_aspect_ratio_policy") == "stretch"
        floats = x is None or x.dtype == FLOAT32 or mode == "nearest"
        return call.opset >= 11 and mode in TAPS and plain and kept and floats

    def axes(self, call: Call, ins: Inputs) -> list[Axis]:
        """The axes named, whether they change or not. Raises OpError where inputs do not fit together."""
        shape = need(ins, 0, "X").shape
        named = call.get("axes", None)
        at = normalize_axes(range(len(shape)) if named is None else named, len(shape))
        scales, sizes = optional(ins, 2), optional(ins, 3)
        if sizes is not None and sizes.type.size:
            outs = ints_value(sizes, "input 3 (sizes)")
            if len(outs) != len(at) or any(n < 0 for n in outs):
                raise OpError(f"sizes are {list(outs)}; expected {len(at)} of them, none below 0")
            if any(shape[k] == 0 and n for k, n in zip(at, outs, strict=True)):
                raise OpError(f"X is {need(ins, 0, 'X').type}: nothing can be made of an axis of length 0")
            return [Axis(k, shape[k], n, n / max(shape[k], 1)) for k, n in zip(at, outs, strict=True)]
        if scales is None or not scales.type.size:
            raise OpError("neither scales nor sizes are given")
        need_dtype(scales, FLOATS, "input 2 (scales)")
        factors = known(scales).tolist()
        if len(factors) != len(at) or not all(0 < f < 2**31 for f in factors):
            raise OpError(f"scales are {list(factors)}; expected {len(at)} of them, above 0")
        return [Axis(k, shape[k], floor(shape[k] * f), f) for k, f in zip(at, factors, strict=True)]

    @may_need_values
    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X")
        if setting(call, "nearest_mode") not in NEAREST:
            raise OpError(f"nearest_mode is {call.attrs['nearest_mode']!r}; expected one of {', '.join(NEAREST)}")
        shape = list(x.shape)
        for axis in self.axes(call, ins):
            shape[axis.at] = axis.out
        return [tensor(x.dtype, shape)]

    def changed(self, call: Call, ins: Inputs) -> list[Axis]:
        """The axes that change, those that shrink first."""
        axes = [axis for axis in self.axes(call, ins) if axis.out != axis.size or axis.scale != 1]
        return sorted(axes, key=lambda axis: axis.out / max(axis.size, 1))

    def emits(self, call: Call, ins: Inputs) -> bool:
        axes = self.changed(call, ins)
        return need(ins, 0, "X").dtype == FLOAT32 and len(axes) > 0 and all(axis.out <= LONGEST for axis in axes)

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        shape, axes = list(need(ins, 0, "X").shape), self.changed(call, ins)
        calls: list[KernelCall] = []
        temps: list[int] = []
        mode, source = setting(call, "mode"), Buffer("in", 0)
        for number, axis in enumerate(axes):
            outer, inner = prod(shape[: axis.at]), prod(shape[axis.at + 1 :])
            shape[axis.at] = axis.out
            target = Buffer("out", 0) if number == len(axes) - 1 else Buffer("temp", number)
            args: Arguments = {"x": source, "y": target, "size": axis.size, "out": axis.out}
            args |= {"inner": inner, "taps": TAPS[mode], "index": partial(self.table, call, axis, 0)}
            if mode != "nearest":
                args["weights"] = partial(self.table, call, axis, 1)
            work = NS_PER_ELEMENT * prod(shape) * (4 * TAPS[mode])
            calls.append(KernelCall(resampling.resample, outer if inner * axis.out else 0, args, 0, work))
            temps.append(4 * prod(shape))
            source = target
        return Emission(calls, temps[:-1], choice="resample")

    @staticmethod
    def table(call: Call, axis: Axis, which: int, block: slice | None = None) -> Array:
        """int64 [taps, out] inputs of an axis, or float32 [taps, out] weights; for all outputs or a block of them."""
        mode, block = setting(call, "mode"), block or slice(0, axis.out)
        places = coordinates(axis, block, setting(call, "coordinate_transformation_mode"))
        with np.errstate(all="ignore"):
            if mode == "nearest":
                chosen = nearest(places, setting(call, "nearest_mode"))
                return np.clip(chosen, 0, axis.size - 1).astype(np.int64)
            a, exclude = float(call.get("cubic_coeff_a", -0.75)), bool(call.get("exclude_outside", 0))
            found = taps(places, axis.size, mode, a, exclude)[which]
        return np.ascontiguousarray(found if which == 0 else found.astype(np.float32))

    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        y = array(ins, 0)
        if outs[0].size == 0:
            return
        for axis in self.changed(call, operands(ins)):
            source, y = y, np.empty(with_dims(y.shape, axis.at, axis.out), y.dtype)
            for start in range(0, axis.out, BLOCK):
                block = slice(start, min(start + BLOCK, axis.out))
                to: Any = (*[slice(None)] * axis.at, block)
                index = self.table(call, axis, 0, block)
                if index.ndim == 1:
                    y[to] = np.take(source, index, axis.at)
                    continue
                column = (-1, *[1] * (y.ndim - 1 - axis.at))
                parts = zip(index, self.table(call, axis, 1, block), strict=True)
                y[to] = sum(np.take(source, at, axis.at) * weight.reshape(column) for at, weight in parts)
        np.copyto(outs[0], y, casting="unsafe")
