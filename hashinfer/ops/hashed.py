"""Fused hashed ops: products, convolutions and lookups over a virtual weight matrix that is never held.

Which kernel runs is chosen here, by shape, batch and scheme alone; `Emission.choice` and `.reason` say it in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2, prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import blocks, dyadic, lookup, xxh32
from hashinfer.kernels.jit import Kernel
from hashinfer.ops.base import Array, Call, Operand, TensorType, need, optional
from hashinfer.ops.convolution import Geometry
from hashinfer.ops.emission import Argument, Buffer, Emission, KernelCall, NativeOp
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.ops.product import F32, Epilogue, Rows, bias_args, block_tiles, check_bias, conv_rows, matmul_shape
from hashinfer.schemes import Dyadic

FEW_ROWS, FEW_ROWS_OF_RUNS, LONG_RUN = 3, 16, 16
"""Up to here xxh32 hashes anew for every row; above, a tile of W is hashed once for 32 rows. Runs cost fewer hashes."""
FEW_TRANSFORMS = 16
"""Up to here a dyadic product shares chunks of groups between threads; above, blocks of 16 rows."""
TINY = 2048
"""Virtual weights below which the direct dyadic kernel beats any transform."""

# Rough times on one thread in nanoseconds; they only place thresholds.
_NS_HASH, _NS_XOR, _NS_BUTTERFLY, _NS_OUTPUT = 0.75, 0.8, 0.04, 4.0


class HashedProduct(NativeOp):
    """y = epilogue(x @ W (+ bias)), x [..., inputs] float32; W, or its transpose, is the matrix. Inputs: x, bias."""

    def __init__(self, matrix: HashedMatrix, transposed: bool = False, epilogue: Epilogue = Epilogue()) -> None:  # noqa: B008
        self.matrix = matrix
        self.transposed = transposed
        self.epilogue = epilogue
        scheme = matrix.scheme
        self.inputs, self.outputs = (scheme.cols, scheme.rows) if transposed else (scheme.rows, scheme.cols)

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType]:
        x = need(ins, 0, "x")
        if x.dtype != F32:
            raise OpError(f"x is {x.type}; expected float32, the type of W")
        shape = matmul_shape(x.shape, self.inputs, self.outputs)
        check_bias(optional(ins, 1), prod(shape[:-1]), self.outputs)
        return [TensorType(F32, shape)]

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        rows = prod(outs[0].shape[:-1])
        bias = bias_args(optional(ins, 1), 1, rows, self.outputs)
        source = Rows(
            Buffer("in", 0),
            self.inputs,
            rows,
            self.inputs,
            self.outputs,
            Buffer("out", 0),
            self.outputs,
            bias=bias,
            epilogue=self.epilogue,
        )
        return emit_product(self.matrix, source, self.transposed)


class HashedConv(NativeOp):
    """Convolution whose weights [O, I/group, kh, kw] are W [I/group kh kw, O] transposed. Inputs: x, None, bias."""

    def __init__(self, matrix: HashedMatrix, weight_shape: tuple[int, ...], epilogue: Epilogue = Epilogue()) -> None:  # noqa: B008
        self.matrix = matrix
        self.weight_shape = weight_shape
        self.epilogue = epilogue

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType]:
        x = need(ins, 0, "X")
        if x.dtype != F32:
            raise OpError(f"X is {x.type}; expected float32, the type of W")
        geometry = Geometry.of(call, x.shape, self.weight_shape)
        check_bias(optional(ins, 2), 1, geometry.out_channels)
        return [TensorType(F32, geometry.out_shape)]

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        geometry = Geometry.of(call, need(ins, 0, "X").shape, self.weight_shape)
        bias = optional(ins, 2)
        if geometry.groups == 1:
            return emit_product(self.matrix, conv_rows(geometry, 0, bias, self.epilogue))
        parts = []
        for group in range(geometry.groups):
            source = conv_rows(geometry, group, bias, self.epilogue)
            parts.append(_block_emission(self.matrix, source, first_output=group * source.outputs))
        calls = [call for part in parts for call in part.calls]
        return Emission(calls, choice=parts[0].choice, reason=f"{geometry.groups} groups, each a part of W's columns")


class HashedLookup(NativeOp):
    """Rows of W by ids (Gather, axis 0): y [*ids.shape, cols] float32. Inputs: ids, int32 or int64, of any shape."""

    def __init__(self, matrix: HashedMatrix) -> None:
        self.matrix = matrix

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType]:
        ids = need(ins, 0, "indices")
        if ids.dtype not in (np.int32, np.int64):
            raise OpError(f"indices are {ids.type}; expected int32 or int64")
        return [TensorType(F32, (*ids.shape, self.matrix.scheme.cols))]

    def check_values(self, ins: Sequence[Array | None]) -> None:
        ids, rows = ins[0], self.matrix.scheme.rows
        if ids is not None and ids.size and not (-rows <= ids.min() and ids.max() < rows):
            raise OpError(f"indices reach from {ids.min()} to {ids.max()}; expected {-rows} to {rows - 1}")

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        ids, matrix = need(ins, 0, "indices"), self.matrix
        args: dict[str, Argument] = {
            "ids": Buffer("in", 0),
            "id_bytes": ids.dtype.itemsize,
            "count": ids.type.size,
            "table_rows": matrix.scheme.rows,
            "cols": matrix.scheme.cols,
            "y": Buffer("out", 0),
            "w": matrix.w,
            "buckets": matrix.scheme.buckets,
            "seed": matrix.scheme.seed,
            "block": matrix.parameter,
            "alpha": float(matrix.scale),
        }
        kernel: Kernel = getattr(lookup, f"xxh32_lookup_{matrix.suffix}")
        tiles = -(-ids.type.size // lookup.IDS_PER_TILE)
        work = _NS_HASH * ids.type.size * matrix.scheme.cols
        return Emission([KernelCall(kernel, tiles, args, 0, work)], choice=kernel.name, reason="rows hashed where read")


class HashedExpand(NativeOp):
    """W itself, [rows, cols] float32: for the places where nothing can be fused with it. No inputs."""

    def __init__(self, matrix: HashedMatrix) -> None:
        self.matrix = matrix

    def infer(self, call: Call, ins: Sequence[Operand | None]) -> Sequence[TensorType]:
        return [TensorType(F32, (self.matrix.scheme.rows, self.matrix.scheme.cols))]

    def emit(self, call: Call, ins: Sequence[Operand | None], outs: Sequence[TensorType]) -> Emission:
        rows, cols = outs[0].shape
        args = _block_args(self.matrix) | {
            "rows": rows,
            "outputs": cols,
            "y": Buffer("out", 0),
            "y_row_stride": cols,
            "alpha": float(self.matrix.scale),
        }
        tiles = -(-rows // blocks.CHUNK) * -(-cols // blocks.STRIP)
        kernel: Kernel = getattr(blocks, f"expand_{self.matrix.suffix}")
        call_ = KernelCall(kernel, tiles, args, blocks.EXPAND_SCRATCH_BYTES, _NS_HASH * rows * cols)
        return Emission([call_], choice=kernel.name, reason="W is materialised: its consumer cannot be fused with it")


def emit_product(matrix: HashedMatrix, source: Rows, transposed: bool = False) -> Emission:
    """The kernels for rows @ W, or rows @ W^T."""
    if isinstance(matrix.scheme, Dyadic):
        if not matrix.in_range:
            why = "not finite" if not matrix.finite else "outside the transform's safe range"
            return _block_emission(matrix, source, transposed, reason=f"the weights are {why}: no transform")
        return _dyadic_emission(matrix, matrix.scheme, source, transposed)
    few = FEW_ROWS_OF_RUNS if matrix.parameter >= LONG_RUN else FEW_ROWS
    if transposed or source.patches is not None or source.rows > few:
        return _block_emission(matrix, source, transposed)
    return _xxh32_rows_emission(matrix, source)


def _scaled(matrix: HashedMatrix, source: Rows) -> dict[str, Argument]:
    """The source's arguments, x scaled as the stored weights are."""
    return source.args() | {"x_scale": float(matrix.scale)}


def _block_args(matrix: HashedMatrix) -> dict[str, Argument]:
    return {
        "w": matrix.w,
        "kind": blocks.DYADIC_KIND if isinstance(matrix.scheme, Dyadic) else blocks.XXH32_KIND,
        "buckets": matrix.scheme.buckets,
        "seed": matrix.scheme.seed,
        "parameter": matrix.parameter,
        "half": matrix.half,
    }


def _block_emission(
    matrix: HashedMatrix, source: Rows, transposed: bool = False, first_output: int = 0, reason: str = ""
) -> Emission:
    args = _scaled(matrix, source) | _block_args(matrix)
    args |= {"transposed": int(transposed), "first_output": first_output}
    kernel: Kernel = getattr(blocks, f"block_{matrix.suffix}")
    tiles = block_tiles(source.rows, source.outputs)
    row_blocks = -(-source.rows // blocks.ROW_BLOCK)
    work = source.inputs * source.outputs * (row_blocks * 5 * _NS_HASH + 0.06 * source.rows)
    call = KernelCall(kernel, tiles, args, blocks.SCRATCH_BYTES, work)
    return Emission([call], choice=kernel.name, reason=reason or f"{source.rows} rows share each hashed tile of W")


def _xxh32_rows_emission(matrix: HashedMatrix, source: Rows) -> Emission:
    args = _scaled(matrix, source) | {
        "w": matrix.w,
        "buckets": matrix.scheme.buckets,
        "seed": matrix.scheme.seed,
        "block": matrix.parameter,
        "skip_zeros": int(matrix.finite),
    }
    kernel: Kernel = getattr(xxh32, f"xxh32_row_{matrix.suffix}")
    tiles = source.rows * -(-source.outputs // xxh32.STRIP)
    work = _NS_HASH * source.rows * source.inputs * source.outputs / min(matrix.parameter, 6)
    reason = f"{source.rows} rows: hashed inline, " + ("zero inputs skipped" if matrix.finite else "no zero skipped")
    return Emission([KernelCall(kernel, tiles, args, xxh32.SCRATCH_BYTES, work)], choice=kernel.name, reason=reason)


def _dyadic_emission(matrix: HashedMatrix, scheme: Dyadic, source: Rows, transposed: bool) -> Emission:
    width, groups = scheme.width, scheme.groups
    chunks = -(-groups // dyadic.GROUP_LANES)
    transform = _NS_BUTTERFLY * chunks * dyadic.GROUP_LANES * width * (log2(width) + 2) if width > 1 else 0.0
    row_work = transform + _NS_OUTPUT * (source.inputs + source.outputs)
    tiny = source.inputs * source.outputs <= TINY and not transposed
    direct_below = source.inputs if tiny else int(row_work / (_NS_XOR * source.outputs))
    args = _scaled(matrix, source) | {
        "w": matrix.w,
        "buckets": scheme.buckets,
        "seed": scheme.seed,
        "width": width,
        "half": matrix.half,
        "spectrum": matrix.take_spectrum,
        "direct_below": direct_below,
        "skip_zeros": 1,
    }
    scratch = dyadic.scratch_bytes(width)
    if transposed:
        kernel: Kernel = getattr(dyadic, f"dyadic_transposed_{matrix.suffix}")
        call = KernelCall(kernel, source.rows, args, scratch, source.rows * row_work)
        return Emission([call], choice=kernel.name, reason="the transpose, by Walsh-Hadamard transform")
    if source.rows <= FEW_TRANSFORMS and source.patches is None:
        folded: dict[str, Argument] = {"folded": Buffer("temp", 0), "direct": Buffer("temp", 1)}
        kernel = getattr(dyadic, f"dyadic_inverse_{matrix.suffix}")
        calls = [
            KernelCall(dyadic.dyadic_forward, source.rows, args | folded, scratch, source.rows * row_work / 4),
            KernelCall(kernel, source.rows * chunks, args | folded, scratch, source.rows * row_work),
        ]
        reason = (
            f"{source.inputs} x {source.outputs} is tiny: by XOR, no transform"
            if tiny
            else f"Walsh-Hadamard over {groups} groups of {width}; by XOR up to {direct_below} non-zero inputs"
        )
        return Emission(calls, (4 * width * source.rows, 8 * source.rows), kernel.name, reason)
    kernel = getattr(dyadic, f"dyadic_rows_{matrix.suffix}")
    tiles = ceil(source.rows / dyadic.ROW_LANES)
    call = KernelCall(kernel, tiles, args, scratch, source.rows * row_work)
    return Emission(
        [call],
        choice=kernel.name,
        reason=f"Walsh-Hadamard over {groups} groups of {width}, 16 rows of {source.rows} at once",
    )
