"""Arithmetic on 8-bit integers: products and convolutions with zero points, and the quantisation of one's own range.

What no kernel is for, zero points of their own for each matrix of a batch among it, is done by NumPy. Integer products
are then taken in float64, block by block, where they are exact: |sum| < 2^53.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import quantise
from hashinfer.ops.base import Array, Call, Operand, Shape, TensorType, broadcast, need, optional, register
from hashinfer.ops.bytewise import (
    BYTES,
    LONGEST,
    convolution_calls,
    described,
    dynamic_emission,
    flip,
    product_calls,
    scaled_call,
    zero_args,
)
from hashinfer.ops.checks import FLOAT32, FLOATS, array, need_dtype
from hashinfer.ops.convolution import Geometry
from hashinfer.ops.emission import Argument, Buffer, Emission, NativeOp, given

INT32, UINT8 = np.dtype(np.int32), np.dtype(np.uint8)
ROWS, COLS, INNER = 256, 256, 4096
"""Of one block of a product: what is made on the way takes at most 17 MB."""


def need_bytes(x: Operand, zero: Operand | None, what: str) -> None:
    """Raise OpError unless x is int8 or uint8, and its zero point, if there is one, of the same dtype."""
    need_dtype(x, BYTES, what)
    if zero is not None and zero.dtype != x.dtype:
        raise OpError(f"the zero point of {what} is {zero.type}; expected {x.dtype}")


def product_shape(a: Operand, b: Operand) -> Shape:
    """Of a @ b, as NumPy's matmul has it. Raises OpError where the operands do not fit."""
    if not a.shape or not b.shape:
        raise OpError(f"A is {a.type} and B is {b.type}; expected no scalar")
    left, right = (1, *a.shape) if len(a.shape) == 1 else a.shape, (*b.shape, 1) if len(b.shape) == 1 else b.shape
    if left[-1] != right[-2]:
        raise OpError(f"A is {a.type} and B is {b.type}: the inner sizes {left[-1]} and {right[-2]} differ")
    rows = () if len(a.shape) == 1 else (left[-2],)
    cols = () if len(b.shape) == 1 else (right[-1],)
    return (*broadcast(left[:-2], right[:-2]), *rows, *cols)


def need_parameter(value: Operand | None, shape: Shape, axis: int, what: str) -> None:
    """Raise OpError unless a zero point or scale is one number, one for each index along `axis`, or broadcasts so."""
    if value is None or value.type.size == 1:
        return
    size = shape[axis] if len(shape) >= -axis else 1
    matrix = (size, 1) if axis == -2 else (1, size)
    if value.shape not in {(size,), (*shape[:-2], *matrix)}:
        raise OpError(f"{what} is {value.type}; expected one number, or {size} along axis {axis}")


def aligned(value: Array | None, axis: int) -> Array:
    """A zero point or scale in a shape that broadcasts: one for each row (axis -2) or column (axis -1) of a matrix."""
    if value is None:
        return np.zeros((1, 1), np.int32)
    if value.size == 1:
        return value.reshape(1, 1)
    if value.ndim == 1:
        return value.reshape(-1, 1) if axis == -2 else value.reshape(1, -1)
    return value


def blocks(length: int, size: int) -> Iterator[slice]:
    """0 ... length in runs of at most `size`."""
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


def exact_products(a: Array, b: Array, a_zero: Array, b_zero: Array) -> Iterator[tuple[slice, slice, Array]]:
    """(rows, columns, float64 block) of (a - a_zero) @ (b - b_zero), two matrices of 8-bit integers."""
    for rows in blocks(a.shape[0], ROWS):
        for cols in blocks(b.shape[1], COLS):
            total = np.zeros((rows.stop - rows.start, cols.stop - cols.start))
            for inner in blocks(a.shape[1], INNER):
                left = a[rows, inner].astype(np.float64) - (a_zero[rows] if len(a_zero) > 1 else a_zero)
                right = b[inner, cols].astype(np.float64) - (b_zero[:, cols] if b_zero.shape[1] > 1 else b_zero)
                total += left @ right
            yield rows, cols, total


def matrices(a: Array, b: Array, *along: Array) -> Iterator[tuple[tuple[int, ...], list[Array]]]:
    """(index of the output, the matrices a and b, what lies along them) for every matrix of a batch."""
    left, right = a.reshape(1, -1) if a.ndim == 1 else a, b.reshape(-1, 1) if b.ndim == 1 else b
    batch = np.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    spread = [np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (left, right, *along)]
    for at in np.ndindex(*batch):
        yield at, [x[at] for x in spread]


def flat_zero(zero: Operand | None) -> bool:
    """Whether there is one zero point for each output, for all matrices of a batch alike, or fewer."""
    return zero is None or zero.type.size == 1 or len(zero.shape) == 1


@register("MatMulInteger")
class MatMulInteger(NativeOp):
    """(A - its zero point) @ (B - its zero point) in int32."""

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType] | None:
        a, b = need(ins, 0, "A"), need(ins, 1, "B")
        need_bytes(a, optional(ins, 2), "A")
        need_bytes(b, optional(ins, 3), "B")
        need_parameter(optional(ins, 2), a.shape, -2, "the zero point of A")
        need_parameter(optional(ins, 3), b.shape, -1, "the zero point of B")
        return [TensorType(INT32, product_shape(a, b))]

    def emits(self, call: Call, ins: Sequence[Operand | None]) -> bool:
        return flat_zero(optional(ins, 3))

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        return described(*product_calls(ins, (0, 2), (1, 3), Buffer("out", 0)))

    def run(self, call: Call, ins: Sequence[Array | None], outs: Sequence[Array]) -> None:
        if self.emits(call, given(ins)):
            super().run(call, ins, outs)
            return
        a, b, out = array(ins, 0), array(ins, 1), outs[0]
        a_zero, b_zero = (aligned(ins[k] if len(ins) > k else None, axis) for k, axis in ((2, -2), (3, -1)))
        if out.size == 0:
            return
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        target = out.reshape(*batch, 1 if a.ndim == 1 else a.shape[-2], 1 if b.ndim == 1 else b.shape[-1])
        for at, (left, right, zero, other) in matrices(a, b, a_zero, b_zero):
            for rows, cols, total in exact_products(left, right, zero, other):
                target[at][rows, cols] = total.astype(np.int64)


def saturated(values: Array, zero: Array, out: Array) -> None:
    """out = values, rounded to even, plus the zero point, within the range of out's dtype."""
    limits = np.iinfo(out.dtype)
    with np.errstate(all="ignore"):
        np.copyto(out, np.clip(np.rint(values) + zero, limits.min, limits.max), casting="unsafe")


def need_scale_of(scale: Operand, zero: Operand, what: str) -> None:
    """Raise OpError unless a scale is float32 or float16 and as many as its zero points."""
    need_dtype(scale, FLOATS, f"the scale of {what}")
    if zero.type.size != scale.type.size:
        raise OpError(f"{what} has scale {scale.type} and zero point {zero.type}; expected as many of both")


@register("QLinearMatMul")
class QLinearMatMul(NativeOp):
    """saturate(round((A @ B) a_scale b_scale / y_scale) + y's zero point), of 8-bit integers less their zero points."""

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType] | None:
        a, a_scale, a_zero = need(ins, 0, "a"), need(ins, 1, "a_scale"), need(ins, 2, "a_zero_point")
        b, b_scale, b_zero = need(ins, 3, "b"), need(ins, 4, "b_scale"), need(ins, 5, "b_zero_point")
        y_scale, y_zero = need(ins, 6, "y_scale"), need(ins, 7, "y_zero_point")
        need_bytes(a, a_zero, "a")
        need_bytes(b, b_zero, "b")
        need_dtype(y_zero, BYTES, "y_zero_point")
        for what, scale, zero, shape, axis in (
            ("a", a_scale, a_zero, a.shape, -2),
            ("b", b_scale, b_zero, b.shape, -1),
            ("y", y_scale, y_zero, (), -1),
        ):
            need_scale_of(scale, zero, what)
            need_parameter(scale, shape, axis, f"the scale of {what}")
            need_parameter(zero, shape, axis, f"the zero point of {what}")
        return [TensorType(y_zero.dtype, product_shape(a, b))]

    def supports(self, call: Call, ins: Sequence[Operand | None]) -> bool:
        a, b, y_zero = optional(ins, 0), optional(ins, 3), optional(ins, 7)
        return all(x is None or len(x.shape) >= 2 for x in (a, b)) and (y_zero is None or y_zero.type.size == 1)

    def emits(self, call: Call, ins: Sequence[Operand | None]) -> bool:
        scales = [need(ins, k, "a scale") for k in (1, 4, 6)]
        flat = flat_zero(scales[1]) and flat_zero(optional(ins, 5))
        return flat and all(s.dtype == FLOAT32 for s in scales) and need(ins, 0, "a").shape[-1] <= LONGEST

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        shape = outs[0].shape
        calls, temps = product_calls(ins, (0, 2), (3, 5), Buffer("temp", 1))
        scales, columns = need(ins, 1, "a_scale").type.size, need(ins, 4, "b_scale").type.size
        args: dict[str, Argument] = {
            "x": Buffer("temp", 1),
            "y": Buffer("out", 0),
            "row_scale": Buffer("in", 1),
            "row_period": scales,
            "scale": Buffer("in", 4),
            "step": int(columns > 1),
            "y_scale": Buffer("in", 6),
            "flip": flip(outs[0].dtype),
            **zero_args(ins, 7),
        }
        last = scaled_call(quantise.requantise, prod(shape[:-1]), shape[-1], args)
        return described([*calls, last], [*temps, 4 * prod(shape)])

    def run(self, call: Call, ins: Sequence[Array | None], outs: Sequence[Array]) -> None:
        if self.emits(call, given(ins)):
            super().run(call, ins, outs)
            return
        a, b, y_scale, y_zero = array(ins, 0), array(ins, 3), array(ins, 6), array(ins, 7)
        if outs[0].size == 0:
            return
        along = [aligned(array(ins, k), axis) for k, axis in ((2, -2), (5, -1), (1, -2), (4, -1))]
        whole, last = y_scale.astype(np.float32).reshape(()), y_zero.astype(np.int64).reshape(())
        for at, (left, right, a_zero, b_zero, a_scale, b_scale) in matrices(a, b, *along):
            for rows, cols, total in exact_products(left, right, a_zero, b_zero):
                one = (a_scale[rows] if len(a_scale) > 1 else a_scale).astype(np.float32)
                other = (b_scale[:, cols] if b_scale.shape[1] > 1 else b_scale).astype(np.float32)
                saturated(total.astype(np.float32) * (one * other / whole), last, outs[0][at][rows, cols])


@register("DynamicQuantizeLinear")
class DynamicQuantizeLinear(NativeOp):
    """uint8 of float32 by its own range, which is made to hold 0; and the scale and the zero point."""

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        return dynamic_emission(outs[0].size)

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType] | None:
        x = need(ins, 0, "x")
        need_dtype(x, frozenset({FLOAT32}), "x")
        return [TensorType(UINT8, x.shape), TensorType(FLOAT32, ()), TensorType(UINT8, ())]


class IntegerConvolution(NativeOp):
    """What the convolutions of 8-bit integers share."""

    def geometry(self, call: Call, x: Operand, w: Operand, w_zero: Operand | None) -> Geometry:
        """Raises OpError where the operands do not fit."""
        found = Geometry.of(call, x.shape, w.shape)
        if w_zero is not None and w_zero.type.size != 1 and w_zero.shape != (found.out_channels,):
            raise OpError(f"the zero point of w is {w_zero.type}; expected one number, or {found.out_channels}")
        return found

    def supports(self, call: Call, ins: Sequence[Operand | None]) -> bool:
        x = optional(ins, 0)
        return x is None or len(x.shape) in (3, 4)


@register("ConvInteger")
class ConvInteger(IntegerConvolution):
    """(x - its zero point) convolved with (w - its zero point) in int32; padding is the zero point."""

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType] | None:
        x, w, x_zero, w_zero = need(ins, 0, "x"), need(ins, 1, "w"), optional(ins, 2), optional(ins, 3)
        need_bytes(x, x_zero, "x")
        need_bytes(w, w_zero, "w")
        need_parameter(x_zero, (), -1, "the zero point of x")
        return [TensorType(INT32, self.geometry(call, x, w, w_zero).out_shape)]

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        geometry = Geometry.of(call, need(ins, 0, "x").shape, need(ins, 1, "w").shape)
        return described(*convolution_calls(ins, geometry, 2, (1, 3), Buffer("out", 0)))


@register("QLinearConv")
class QLinearConv(IntegerConvolution):
    """saturate(round((convolution + bias) x_scale w_scale / y_scale) + y's zero point), of 8-bit integers."""

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType] | None:
        x, x_scale, x_zero = need(ins, 0, "x"), need(ins, 1, "x_scale"), need(ins, 2, "x_zero_point")
        w, w_scale, w_zero = need(ins, 3, "w"), need(ins, 4, "w_scale"), need(ins, 5, "w_zero_point")
        y_scale, y_zero, bias = need(ins, 6, "y_scale"), need(ins, 7, "y_zero_point"), optional(ins, 8)
        need_bytes(x, x_zero, "x")
        need_bytes(w, w_zero, "w")
        need_dtype(y_zero, BYTES, "y_zero_point")
        geometry = self.geometry(call, x, w, w_zero)
        for what, scale, zero in (("x", x_scale, x_zero), ("y", y_scale, y_zero)):
            need_scale_of(scale, zero, what)
            need_dtype(scale, frozenset({FLOAT32}), f"the scale of {what}")
            need_parameter(scale, (), -1, f"the scale of {what}")
        need_dtype(w_scale, frozenset({FLOAT32}), "the scale of w")
        if w_scale.type.size != 1 and w_scale.shape != (geometry.out_channels,):
            raise OpError(f"the scale of w is {w_scale.type}; expected one number, or {geometry.out_channels}")
        if bias is not None and (bias.dtype != INT32 or bias.shape != (geometry.out_channels,)):
            raise OpError(f"B is {bias.type}; expected int32[{geometry.out_channels}]")
        return [TensorType(y_zero.dtype, geometry.out_shape)]

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        geometry = Geometry.of(call, need(ins, 0, "x").shape, need(ins, 3, "w").shape)
        calls, temps = convolution_calls(ins, geometry, 2, (3, 5), Buffer("temp", 1))
        args: dict[str, Argument] = {
            "x": Buffer("temp", 1),
            "y": Buffer("out", 0),
            "row_scale": Buffer("in", 1),
            "scale": Buffer("in", 4),
            "period": need(ins, 4, "w_scale").type.size,
            "y_scale": Buffer("in", 6),
            "flip": flip(outs[0].dtype),
            **zero_args(ins, 7),
        }
        if optional(ins, 8) is not None:
            args |= {"bias": Buffer("in", 8), "bias_period": geometry.out_channels}
        rows = geometry.batch * geometry.out_channels
        last = scaled_call(quantise.requantise, rows, geometry.out_pixels, args)
        return described([*calls, last], [*temps, 4 * outs[0].size])
