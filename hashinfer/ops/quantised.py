"""Arithmetic on 8-bit integers: products and convolutions with zero points, and the quantisation of one's own range."""

from math import prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import quantise
from hashinfer.ops.base import Call, Inputs, Operand, Shape, TensorType, Types, optional, register
from hashinfer.ops.bytewise import (
    BYTES,
    LONGEST,
    alike,
    convolution_calls,
    exact_emission,
    product_calls,
    requantise_call,
    scaled_call,
)
from hashinfer.ops.checks import FLOAT32, FLOATS, need, need_all, need_dtype
from hashinfer.ops.convolution import Geometry
from hashinfer.ops.emission import NS_PER_ELEMENT, Arguments, Buffer, Emission, KernelCall, NativeOp
from hashinfer.ops.product import few_matrices, product_shape

INT32, UINT8 = np.dtype(np.int32), np.dtype(np.uint8)
SINGLE = frozenset({FLOAT32})


def need_bytes(x: Operand, zero: Operand | None, what: str) -> None:
    """Raise OpError unless x is int8 or uint8, and its zero point, if there is one, of the same dtype."""
    need_dtype(x, BYTES, what)
    if zero is not None and zero.dtype != x.dtype:
        raise OpError(f"the zero point of {what} is {zero.type}; expected {x.dtype}")


def by_row(*values: Operand | None) -> bool:
    """Whether parameters of A are [M]: onnx's reference takes them for columns."""
    return any(v is not None and v.rank == 1 and v.type.size > 1 for v in values)


def need_parameter(value: Operand | None, shape: Shape, axis: int, what: str) -> None:
    """Raise OpError unless a zero point or scale is one number, one for each index along `axis`, or broadcasts so."""
    if value is None or value.type.size == 1:
        return
    size = shape[axis] if len(shape) >= -axis else 1
    matrix = (size, 1) if axis == -2 else (1, size)
    if value.shape not in {(size,), (*shape[:-2], *matrix)}:
        raise OpError(f"{what} is {value.type}; expected one number, or {size} along axis {axis}")


def need_one_or(value: Operand, channels: int, what: str) -> None:
    """Raise OpError unless a zero point or scale is one number, or a vector of one for each channel."""
    if value.type.size != 1 and value.shape != (channels,):
        raise OpError(f"{what} is {value.type}; expected one number, or {channels}")


def shared(value: Operand | None, length: int) -> bool:
    """Whether all matrices of a batch have the same zero points or scales."""
    return value is None or value.type.size in (1, length)


@register("MatMulInteger")
class MatMulInteger(NativeOp):
    """(A - its zero point) @ (B - its zero point) in int32. Zero points for each matrix of a batch are not native."""

    def native(self, ins: Inputs) -> bool:
        a, b = need_all(ins, "A", "B")
        return not a.shape or not b.shape or (shared(optional(ins, 3), b.shape[-1]) and few_matrices(ins, 1))

    def supports(self, call: Call, ins: Inputs) -> bool:
        return len(ins) < 2 or None in ins[:2] or self.native(ins) or by_row(optional(ins, 2))

    def infer(self, call: Call, ins: Inputs) -> Types:
        a, b = need_all(ins, "A", "B")
        need_bytes(a, optional(ins, 2), "A")
        need_bytes(b, optional(ins, 3), "B")
        need_parameter(optional(ins, 2), a.shape, -2, "the zero point of A")
        need_parameter(optional(ins, 3), b.shape if b.rank > 1 else (*b.shape, 1), -1, "the zero point of B")
        shape = product_shape(a, b)
        if not self.native(ins):
            raise OpError(f"the zero point of A is {need(ins, 2, 'it').type}; expected [..., M, 1] beside that of B")
        return [TensorType(INT32, shape)]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        return exact_emission(*product_calls(ins, 1, 3, Buffer("out", 0)))


def need_linear(ins: Inputs, a: str, b: str) -> list[Operand]:
    """Both operands, each with its scale and zero point, and those of y. Raises OpError on a dtype not of 8 bits."""
    parts = (f"{name}{of}" for name in (a, b) for of in ("", "_scale", "_zero_point"))
    found = need_all(ins, *parts, "y_scale", "y_zero_point")
    need_bytes(found[0], found[2], a)
    need_bytes(found[3], found[5], b)
    need_dtype(found[7], BYTES, "y_zero_point")
    return found


def need_scale_of(scale: Operand, zero: Operand, what: str) -> None:
    """Raise OpError unless a scale is a float and as many as its zero points."""
    need_dtype(scale, FLOATS, f"the scale of {what}")
    if zero.type.size != scale.type.size:
        raise OpError(f"{what} has scale {scale.type} and zero point {zero.type}; expected as many of both")


@register("QLinearMatMul")
class QLinearMatMul(NativeOp):
    """saturate(round((A @ B) a_scale b_scale / y_scale) + y's zero point), of 8-bit integers less their zero points.

    float16 scales, vectors, more than LONGEST inputs, and parameters for each matrix of a batch are not native.
    """

    def infer(self, call: Call, ins: Inputs) -> Types:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = need_linear(ins, "a", "b")
        for what, scale, zero, shape, axis in (
            ("a", a_scale, a_zero, a.shape, -2),
            ("b", b_scale, b_zero, b.shape, -1),
            ("y", y_scale, y_zero, (), -1),
        ):
            need_scale_of(scale, zero, what)
            need_parameter(scale, shape, axis, f"the scale of {what}")
            need_parameter(zero, shape, axis, f"the zero point of {what}")
        made = product_shape(a, b)
        if not self.native(ins):
            raise OpError(f"the scale of a is {a_scale.type}; expected [..., M, 1] beside the others")
        return [TensorType(y_zero.dtype, made)]

    def native(self, ins: Inputs) -> bool:
        a, b = need(ins, 0, "a"), need(ins, 3, "b")
        if a.rank < 2 or b.rank < 2 or a.shape[-1] > LONGEST or not few_matrices(ins, 3):
            return False
        scales, zeros = ([optional(ins, k) for k in numbers] for numbers in ((1, 4, 6), (2, 5, 7)))
        plain = all(s is None or s.dtype == FLOAT32 for s in scales) and shared(zeros[2], 1)
        alike = all(shared(values[1], b.shape[-1]) for values in (scales, zeros))
        return plain and alike and (shared(scales[0], a.shape[-2]) or prod(b.shape[:-2]) == 1)

    def supports(self, call: Call, ins: Inputs) -> bool:
        if optional(ins, 0) is None or optional(ins, 3) is None:
            return True
        return self.native(ins) or by_row(optional(ins, 1), optional(ins, 2))

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        shape, sums = outs[0].shape, Buffer("temp", 1)
        calls, temps = product_calls(ins, 3, 5, sums)
        rows, columns = need(ins, 1, "a_scale").type.size, need(ins, 4, "b_scale").type.size
        at = (prod(shape[:-1]), shape[-1])
        last = requantise_call(ins, outs[0], at, sums, row_period=rows, step=int(columns > 1))
        return exact_emission(calls, [*temps, 4 * prod(shape)], last)


@register("DynamicQuantizeLinear")
class DynamicQuantizeLinear(NativeOp):
    """uint8 of float32 by its own range, which is made to hold 0; and the scale and the zero point."""

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        x, y, scale, zero = Buffer("in", 0), *(Buffer("out", k) for k in range(3))
        count, scratch = outs[0].size, quantise.RANGE_SCRATCH_BYTES
        found: Arguments = {"x": x, "count": count, "scale": scale, "zero": zero}
        args: Arguments = {"x": x, "y": y, "scale": scale, "zero": zero, "zeros": 1}
        first = KernelCall(quantise.dynamic_range, 1, found, scratch, NS_PER_ELEMENT * count)
        return Emission([first, scaled_call(quantise.quantise, *alike(count), args)], choice="dynamic_range")

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "x", SINGLE)
        return [TensorType(UINT8, x.shape), TensorType(FLOAT32, ()), TensorType(UINT8, ())]


class IntegerConvolution(NativeOp):
    """What the convolutions of 8-bit integers share."""

    def geometry(self, call: Call, x: Operand, w: Operand, w_zero: Operand | None) -> Geometry:
        """Raises OpError where the operands do not fit."""
        found = Geometry.of(call, x.shape, w.shape)
        if w_zero is not None:
            need_one_or(w_zero, found.out_channels, "the zero point of w")
        return found

    def supports(self, call: Call, ins: Inputs) -> bool:
        x = optional(ins, 0)
        return x is None or x.rank in (3, 4)


@register("ConvInteger")
class ConvInteger(IntegerConvolution):
    """(x - its zero point) convolved with (w - its zero point) in int32; padding is the zero point."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, w, x_zero, w_zero = need(ins, 0, "x"), need(ins, 1, "w"), optional(ins, 2), optional(ins, 3)
        need_bytes(x, x_zero, "x")
        need_bytes(w, w_zero, "w")
        need_parameter(x_zero, (), -1, "the zero point of x")
        return [TensorType(INT32, self.geometry(call, x, w, w_zero).out_shape)]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        geometry = Geometry.of(call, need(ins, 0, "x").shape, need(ins, 1, "w").shape)
        return exact_emission(*convolution_calls(ins, geometry, 1, 3, Buffer("out", 0)))


@register("QLinearConv")
class QLinearConv(IntegerConvolution):
    """saturate(round((convolution + bias) x_scale w_scale / y_scale) + y's zero point), of 8-bit integers."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = need_linear(ins, "x", "w")
        bias, geometry = optional(ins, 8), self.geometry(call, x, w, w_zero)
        for what, scale, zero in (("x", x_scale, x_zero), ("y", y_scale, y_zero)):
            need_scale_of(scale, zero, what)
            need_dtype(scale, SINGLE, f"the scale of {what}")
            need_parameter(scale, (), -1, f"the scale of {what}")
        need_dtype(w_scale, SINGLE, "the scale of w")
        need_one_or(w_scale, geometry.out_channels, "the scale of w")
        if bias is not None and (bias.dtype != INT32 or bias.shape != (geometry.out_channels,)):
            raise OpError(f"B is {bias.type}; expected int32[{geometry.out_channels}]")
        return [TensorType(y_zero.dtype, geometry.out_shape)]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        geometry, sums = Geometry.of(call, need(ins, 0, "x").shape, need(ins, 3, "w").shape), Buffer("temp", 1)
        calls, temps = convolution_calls(ins, geometry, 3, 5, sums)
        more: Arguments = {"period": need(ins, 4, "w_scale").type.size}
        if optional(ins, 8) is not None:
            more |= {"bias": Buffer("in", 8), "bias_period": geometry.out_channels}
        at = (geometry.batch * geometry.out_channels, geometry.out_pixels)
        return exact_emission(calls, [*temps, 4 * outs[0].size], requantise_call(ins, outs[0], at, sums, **more))
