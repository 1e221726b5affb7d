"""Kernel calls for arithmetic on 8-bit integers: products, convolutions, and the way to and from floats."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from hashinfer.kernels import blocks, integer, quantise
from hashinfer.kernels.elementwise import TILE
from hashinfer.kernels.jit import Kernel
from hashinfer.ops.base import Inputs, Operand, Shape, TensorType, optional
from hashinfer.ops.checks import need
from hashinfer.ops.convolution import Geometry
from hashinfer.ops.emission import (
    IN_AND_OUT,
    NS_PER_ELEMENT,
    Argument,
    Arguments,
    Buffer,
    Emission,
    KernelCall,
    aligned,
)
from hashinfer.ops.product import (
    NS_PER_MULTIPLY,
    Epilogue,
    Rows,
    as_matrices,
    batch_offsets,
    block_tiles,
    by_planes,
    conv_rows,
    pixel_tiles,
    pixel_work,
    planes_call,
)

INT8 = np.dtype(np.int8)
BYTES = frozenset({np.dtype(np.uint8), INT8})
FEW_ROWS = 3
EXACT = 2**24 // 255**2
"""The most inputs whose products have an exact float32 sum."""
LONGEST = (2**31 - 1) // 255**2
"""The most inputs whose products cannot reach beyond int32."""
NS_PER_BYTE, NS_PER_CONVERSION = 0.04, 0.3
"""Rough times of a byte of W that is read as a float, and of an element that goes from a float to a byte."""


def flip(dtype: np.dtype[np.generic]) -> int:
    """What the kernels change in bytes of a dtype to read them as uint8."""
    return 128 if dtype == INT8 else 0


def zero_args(ins: Inputs, number: int) -> Arguments:
    """Where the zero points are that are the op's input `number`, and how many: none of them is 0."""
    zero = optional(ins, number)
    return {} if zero is None else {"zero": Buffer("in", number), "zeros": zero.type.size}


def centre_call(ins: Inputs, x_number: int, zero_number: int, run: int, target: Buffer) -> KernelCall:
    """Bytes less their zero points, which take turns after `run` of them, as float32."""
    x = need(ins, x_number, "x")
    args: Arguments = {"x": Buffer("in", x_number), "y": target, "count": x.type.size, "run": max(run, 1)}
    args |= {"flip": flip(x.dtype), **zero_args(ins, zero_number)}
    return KernelCall(integer.centre, -(-x.type.size // TILE), args, 0, NS_PER_ELEMENT * x.type.size)


def product_calls(ins: Inputs, b: int, b_zero: int, y: Buffer) -> tuple[list[KernelCall], list[int]]:
    """(calls, bytes of temporary 0) for (A - zero) @ (B - zero) as int32 into y.

    A is input 0, and its zero points are input 2; b, b_zero: which inputs those of B are.
    """
    left, right = need(ins, 0, "A"), need(ins, b, "B")
    xs, ws, batch, rows = as_matrices(left.shape, right.shape)
    inputs, outputs = xs[-1], ws[-1]
    centred = Buffer("temp", 0)
    source = Rows(centred, inputs, rows, inputs, outputs, y, outputs)
    args = source.args() | {"w": Buffer("in", b), "w_row_stride": outputs, "w_col_stride": 1}
    args |= {"flip": flip(right.dtype), **zero_args(ins, b_zero)}
    entries = inputs * outputs
    work = (NS_PER_MULTIPLY * rows + NS_PER_BYTE) * entries * prod(batch)
    first = centre_call(ins, 0, 2, inputs, centred)
    if rows <= FEW_ROWS and not batch:
        tiles = rows * -(-outputs // blocks.STRIP)
        call = KernelCall(integer.integer_row, tiles, args, integer.ROW_SCRATCH_BYTES, rows * 2 * NS_PER_BYTE * entries)
    else:
        # Rows are padded to whole words of two.
        words = -(-inputs // 2)
        tiles = prod(xs[:-1]) if inputs else 0
        first = replace(first, kernel=integer.centre_rows, tiles=tiles, args={**first.args, "pitch": 2 * words})
        offsets = batch_offsets((*xs[:-1], words), ws, batch, rows * outputs)
        args |= {"offsets": offsets, "x_row_stride": words}
        tiles = block_tiles(rows, outputs) * prod(batch)
        call = KernelCall(integer.integer_block, tiles, args, integer.SCRATCH_BYTES, work)
    return [first, call], [4 * prod(xs[:-1]) * (inputs + 1)]


def convolution_calls(
    ins: Inputs, geometry: Geometry, w: int, w_zero: int, y: Buffer
) -> tuple[list[KernelCall], list[int]]:
    """(calls, bytes of temporary 0) for a convolution of input 0 with W as int32 into y.

    The zero points of input 0 are input 2; w, w_zero: which inputs W and its zero points are.
    """
    kernel = need(ins, w, "w")
    count = geometry.batch * geometry.channels * geometry.pixels
    centred, zeros = Buffer("temp", 0), zero_args(ins, w_zero)
    calls = [centre_call(ins, 0, 2, count, centred)]
    size = aligned(4 * count)
    if by_planes(geometry) and geometry.patch_size <= EXACT:
        at = replace(centred, offset=size)
        calls.append(centre_call(ins, w, w_zero, geometry.patch_size, at))
        args: Arguments = {"x": centred, "w": at, "y": y, "whole": 1, **Epilogue().args()}
        return [*calls, planes_call(geometry, args)], [size + 4 * kernel.type.size]
    for group in range(geometry.groups):
        source = conv_rows(geometry, group, None, Epilogue(), centred, y)
        weights: Arguments = {
            "w": Buffer("in", w, group * source.outputs * source.inputs),
            "w_row_stride": 1,
            "w_col_stride": source.inputs,
            "flip": flip(kernel.dtype),
            **zeros,
        }
        if zeros and zeros["zeros"] != 1:
            weights["zero"] = Buffer("in", w_zero, group * source.outputs)
        work, tiles = pixel_work(source), pixel_tiles(source)
        args = source.args() | weights
        calls.append(KernelCall(integer.integer_pixels, tiles, args, integer.PIXEL_SCRATCH_BYTES, work))
    return calls, [size]


def scaled_call(kernel: Kernel, outer: int, inner: int, args: Arguments) -> KernelCall:
    """A kernel of hashinfer.kernels.quantise over an array [outer, inner]."""
    together = max(1, TILE // max(inner, 1))
    args = {"outer": outer, "inner": inner, "rows_per_tile": together, "period": 1, "row_period": 1} | args
    tiles = -(-outer // together) if inner else 0
    return KernelCall(kernel, tiles, args, 0, NS_PER_CONVERSION * outer * inner)


def alike(size: int) -> tuple[int, int]:
    """(outer, inner) of an array that is one row to the kernels, or as many as make whole tiles."""
    inner = TILE if size % TILE == 0 else size
    return (size // inner if size else 0), inner


def scale_args(shape: Shape, axis: int, scale: Operand) -> tuple[int, int, Arguments]:
    """(outer, inner, arguments) for scales, input 1, that are one number, or one for each index along an axis."""
    args: Arguments = {"scale": Buffer("in", 1)}
    if scale.type.size == 1:
        return *alike(prod(shape)), args
    if axis == len(shape) - 1:
        return prod(shape[:-1]), shape[-1], args | {"step": 1}
    return prod(shape[: axis + 1]), prod(shape[axis + 1 :]), args | {"period": shape[axis]}


def requantise_call(ins: Inputs, out: TensorType, rows: tuple[int, int], sums: Buffer, **more: Argument) -> KernelCall:
    """To bytes, from int32 sums [outer, inner] = rows; the op's inputs 1, 4, 6, 7 are its scales and y's zero point."""
    args = {**IN_AND_OUT, "x": sums, "row_scale": Buffer("in", 1), "scale": Buffer("in", 4)}
    args |= {"y_scale": Buffer("in", 6), "flip": flip(out.dtype), **zero_args(ins, 7), **more}
    return scaled_call(quantise.requantise, *rows, args)


def exact_emission(calls: Sequence[KernelCall], temps: Sequence[int], *more: KernelCall) -> Emission:
    """What product_calls or convolution_calls made, and what comes after; named by the product."""
    return Emission([*calls, *more], temps, choice=calls[-1].kernel.name, reason="sums are exact")
