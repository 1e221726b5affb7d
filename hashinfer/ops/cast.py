"""Conversions between dtypes, plain and quantised."""

from abc import abstractmethod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import elementwise
from hashinfer.kernels import quantise as quantise_kernels
from hashinfer.kernels.jit import Kernel
from hashinfer.ops.base import Array, Arrays, Call, Inputs, Operand, Outputs, TensorType, Types, optional, register
from hashinfer.ops.blockwise import blockwise
from hashinfer.ops.bytewise import BYTES, flip, scale_args, scaled_call, zero_args
from hashinfer.ops.checks import (
    FLOAT16,
    FLOAT32,
    FLOATS,
    ONNX_DTYPES,
    DType,
    DTypes,
    array,
    axis_of,
    need,
    need_all,
    need_dtype,
    need_same_dtype,
)
from hashinfer.ops.emission import IN_AND_OUT, Emission, KernelOrNumPy, NativeOp, flat_emission


class Conversion(NativeOp):
    """To another dtype: floats are cut towards zero, wider integers wrap around, all but zero is True.

    Alone it runs in NumPy: what folds constants needs no compiler.
    """

    @abstractmethod
    def target(self, call: Call, ins: Inputs) -> DType:
        """The dtype. Raises OpError where none is named."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        return [TensorType(self.target(call, ins), need(ins, 0, "input").shape)]

    def emits(self, call: Call, ins: Inputs) -> bool:
        source, target = need(ins, 0, "input").dtype, self.target(call, ins)
        return (source, target) == (FLOAT32, FLOAT16) or (target == FLOAT32 and source.name in elementwise.SOURCES)

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        if outs[0].dtype == FLOAT16:
            return flat_emission(elementwise.to_float16, outs[0].size)
        kind = elementwise.SOURCES.index(need(ins, 0, "input").dtype.name)
        return flat_emission(elementwise.to_float32, outs[0].size, kind)

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        np.copyto(outs[0], array(ins, 0), casting="unsafe")


@register("Cast")
class Cast(Conversion):
    """To the dtype that `to` names. `saturate` and `round_mode` concern float8 alone, which is not native."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        return "to" not in call.attrs or int(call.attrs["to"]) in ONNX_DTYPES

    def target(self, call: Call, ins: Inputs) -> DType:
        if "to" not in call.attrs:
            raise OpError("to is missing")
        return ONNX_DTYPES[int(call.attrs["to"])]


@register("CastLike")
class CastLike(Conversion):
    """To the dtype of the second input."""

    def target(self, call: Call, ins: Inputs) -> DType:
        return need(ins, 1, "target_type").dtype


QUANTIZED: DTypes = frozenset(map(np.dtype, ("i1", "i2", "u1", "u2")))


def output_dtype(call: Call, default: DType) -> DType | None:
    """The dtype that `output_dtype` names, by default `default`; None if it is not native."""
    number = int(call.get("output_dtype", 0))
    return ONNX_DTYPES.get(number) if number else default


def need_scale(call: Call, x: Operand, scale: Operand, zero: Operand | None) -> None:
    """Raise OpError unless scale and zero point are scalars, or vectors along the axis."""
    need_dtype(scale, FLOATS, "scale")
    expected = {(), (1,)}
    if scale.rank == 1 and scale.shape != (1,):
        expected = {(x.shape[axis_of(call, x.shape, 1)],)}
    if scale.shape not in expected:
        raise OpError(f"scale is {scale.type}; expected a scalar, or a vector along the axis of {x.type}")
    if zero is not None and zero.type.size != scale.type.size:
        raise OpError(f"zero point is {zero.type}; expected the shape of the scale, {list(scale.shape)}")


def along_axis(call: Call, x: Array, values: Array | None) -> Array:
    """Scales or zero points in a shape that broadcasts with x; 0 where there are none."""
    if values is None:
        return np.zeros((), np.int8)
    if values.size == 1:
        return values.reshape(())
    return values.reshape(-1, *[1] * (x.ndim - 1 - axis_of(call, x.shape, 1)))


class Quantization(KernelOrNumPy):
    """What both ops share. Blocks with a scale each, and types below 8 bits, are not native."""

    kernel: Kernel

    @abstractmethod
    def dtype(self, call: Call, scale: Operand, zero: Operand | None) -> DType | None:
        """Of the output, None if it is not native."""

    @abstractmethod
    def convert(self, x: Array, scale: Array, zero: Array, out: Array) -> None:
        """By NumPy; scale and zero broadcast with x."""

    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        self.convert(x, along_axis(call, x, array(ins, 1)), along_axis(call, x, optional(ins, 2)), outs[0])

    def supports(self, call: Call, ins: Inputs) -> bool:
        scale, zero = optional(ins, 1), optional(ins, 2)
        return not call.get("block_size", 0) and (
            scale is None or (scale.rank < 2 and self.dtype(call, scale, zero) is not None)
        )

    def emits(self, call: Call, ins: Inputs) -> bool:
        x, scale, zero = need(ins, 0, "x"), need(ins, 1, "scale"), optional(ins, 2)
        kinds = {x.dtype, self.dtype(call, scale, zero)} - {FLOAT32}
        return scale.dtype == FLOAT32 and len(kinds) == 1 and kinds <= BYTES

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        x, scale = need_all(ins, "x", "scale")
        axis = axis_of(call, x.shape, 1) if scale.type.size > 1 else 0
        outer, inner, args = scale_args(x.shape, axis, scale)
        quantised = outs[0].dtype if x.dtype == FLOAT32 else x.dtype
        args |= {**IN_AND_OUT, "flip": flip(quantised), **zero_args(ins, 2)}
        only = scaled_call(self.kernel, outer, inner, args)
        return Emission([only], choice=self.kernel.name)


@register("QuantizeLinear")
class QuantizeLinear(Quantization):
    """saturate(round(x / scale) + zero point), rounding halves to even. Computed in float32 at least."""

    kernel = quantise_kernels.quantise

    def dtype(self, call: Call, scale: Operand, zero: Operand | None) -> DType | None:
        return output_dtype(call, np.dtype(np.uint8) if zero is None else zero.dtype)

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, scale, zero = need(ins, 0, "x"), need(ins, 1, "y_scale"), optional(ins, 2)
        need_dtype(x, FLOATS | {np.dtype(np.int32)}, "x")
        need_scale(call, x, scale, zero)
        dtype = self.dtype(call, scale, zero)
        if dtype is None or dtype not in QUANTIZED or (zero is not None and zero.dtype != dtype):
            raise OpError(f"output would be {dtype}, zero point is {zero and zero.type}; expected one quantised dtype")
        return [TensorType(dtype, x.shape)]

    def convert(self, x: Array, scale: Array, zero: Array, out: Array) -> None:
        limits = np.iinfo(out.dtype)

        def quantize(x: Array, scale: Array, zero: Array) -> Array:
            y: Array = np.clip(np.rint(x / scale) + zero, limits.min, limits.max)
            return y

        blockwise(quantize, [x, scale, zero], out, [np.result_type(scale, FLOAT32)] * 3)


@register("DequantizeLinear")
class DequantizeLinear(Quantization):
    """(x - zero point) scale, in the scale's dtype. Computed in float32 at least."""

    kernel = quantise_kernels.dequantise

    def dtype(self, call: Call, scale: Operand, zero: Operand | None) -> DType | None:
        return output_dtype(call, scale.dtype)

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, scale, zero = need(ins, 0, "x"), need(ins, 1, "x_scale"), optional(ins, 2)
        need_dtype(x, QUANTIZED | {np.dtype(np.int32)}, "x")
        need_scale(call, x, scale, zero)
        if zero is not None:
            need_same_dtype(x, zero, "zero point")
        dtype = self.dtype(call, scale, zero)
        if dtype not in FLOATS:
            raise OpError(f"output would be {dtype}; expected a floating-point dtype")
        return [TensorType(dtype, x.shape)]

    def convert(self, x: Array, scale: Array, zero: Array, out: Array) -> None:
        wide = np.result_type(scale, out, FLOAT32)
        # int32 less int32 is exact in int64, and in float32 it would not be.
        whole = np.dtype(np.int64 if x.dtype == np.int32 else np.int32)
        blockwise(
            lambda x, scale, zero: (x - zero).astype(scale.dtype) * scale, [x, scale, zero], out, [whole, wide, whole]
        )
