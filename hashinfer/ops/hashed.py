"""Fused hashed ops: products, convolutions and lookups over a virtual weight matrix that is never held.

Which kernel runs is chosen here, by shape, batch, scheme and ISA alone; `Emission.choice` and `.reason` say it in
words.
"""

from dataclasses import dataclass, field, replace
from math import ceil, log2, prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import (
    blocks,
    dyadic,
    dyadic_integer,
    dyadic_pixels,
    dyadic_small,
    dyadic_transposed,
    lookup,
    pixel_blocks,
    xxh32,
    xxh32_small,
)
from hashinfer.kernels.isa import GATHERS, INTEGER, ISA, SCALAR
from hashinfer.kernels.pixels import PIXELS
from hashinfer.kernels.vectors import LANES
from hashinfer.ops.base import Arrays, Call, Inputs, Operand, TensorType, Types, optional
from hashinfer.ops.checks import FLOAT32, INDICES, need
from hashinfer.ops.convolution import Geometry
from hashinfer.ops.emission import Arguments, Buffer, Emission, KernelCall, NativeOp
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.ops.product import (
    NS_PER_MULTIPLY,
    Epilogue,
    Rows,
    bias_args,
    block_tiles,
    check_bias,
    conv_rows,
    dense_emission,
    dense_weights,
    matmul_shape,
    pixel_tiles,
    pixel_work,
    plain_rows,
)
from hashinfer.schemes import Dyadic

SPLIT_NS, FEW_SPLIT = 40_000, 8
"""A row that takes longer is cut, for threads to share: a dyadic one by chunks of groups, where there are few rows."""
FEWEST, COUNTING = 0.03, 0.07
"""Share of inputs not zero that no rows are expected to be below; share of the time that counting may take."""

FIRST_CACHE, GROUPED = 48 * 1024, 16
"""Bytes of w up to which its reads are fast; the block from which runs are read as whole vectors."""

# Rough times on one thread in nanoseconds: what `candidates` are told apart by.
_NS_HASH, _NS_FILL_SLOWLY, _NS_COUNT = 0.2, 3.0, 0.09
_LISTED = (0.125, 0.09) if GATHERS else (0.28, 0.08), (0.062, 0.011)
_FILLED = (0.14, 0.035) if GATHERS else (0.34, 0.042), (0.135, 0.025)
_NS_XOR, _NS_TILE, _NS_READ_ROW, _NS_LIST = 0.8, 500.0, 0.3, 1.0
_NS_ROW, _NS_FOLD, _NS_FINISH, _NS_PATCH = 100.0, 0.1, 0.1, 2.0
_NS_STAGE, _NS_PIXEL, _NS_OUTPUT, _NS_UNPACK = 0.2, 2.0, 2.0, 0.5

_SKIPPING = 0.5
"""Share of a product's work where zeros are skipped: about half of a hidden layer's outputs are zero."""


def need_float32(ins: Inputs, what: str) -> Operand:
    """Input 0. Raises OpError unless it is there and float32."""
    x = need(ins, 0, what)
    if x.dtype != FLOAT32:
        raise OpError(f"{what} is {x.type}; expected float32, the type of W")
    return x


@dataclass(eq=False)
class HashedProduct(NativeOp):
    """y = epilogue(x @ W (+ bias)), x [..., inputs] float32; W, or its transpose, is the matrix. Inputs: x, bias."""

    matrix: HashedMatrix
    transposed: bool = False
    epilogue: Epilogue = field(default_factory=Epilogue)

    def __post_init__(self) -> None:
        sizes = self.matrix.scheme.rows, self.matrix.scheme.cols
        self.inputs, self.outputs = sizes[::-1] if self.transposed else sizes

    def infer(self, call: Call, ins: Inputs) -> Types:
        shape = matmul_shape(need_float32(ins, "x").shape, self.inputs, self.outputs)
        check_bias(optional(ins, 1), prod(shape[:-1]), self.outputs)
        return [TensorType(FLOAT32, shape)]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        rows = prod(outs[0].shape[:-1])
        bias = bias_args(optional(ins, 1), 1, rows, self.outputs)
        source = plain_rows(rows, self.inputs, self.outputs, bias, self.epilogue)
        return emit_product(self.matrix, source, self.transposed)


@dataclass(eq=False)
class HashedConv(NativeOp):
    """Convolution whose weights [O, I/group, kh, kw] are W [I/group kh kw, O] transposed. Inputs: x, None, bias."""

    matrix: HashedMatrix
    weight_shape: tuple[int, ...]
    epilogue: Epilogue = field(default_factory=Epilogue)

    def infer(self, call: Call, ins: Inputs) -> Types:
        geometry = Geometry.of(call, need_float32(ins, "X").shape, self.weight_shape)
        check_bias(optional(ins, 2), 1, geometry.out_channels)
        return [TensorType(FLOAT32, geometry.out_shape)]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        geometry = Geometry.of(call, need(ins, 0, "X").shape, self.weight_shape)
        bias = optional(ins, 2)
        if geometry.groups == 1:
            return emit_product(self.matrix, conv_rows(geometry, 0, bias, self.epilogue))
        sources = [conv_rows(geometry, group, bias, self.epilogue) for group in range(geometry.groups)]
        parts = [_block_emission(self.matrix, s, first_output=k * s.outputs) for k, s in enumerate(sources)]
        calls = [call for part in parts for call in part.calls]
        return Emission(calls, choice=parts[0].choice, reason=f"{geometry.groups} groups, each a part of W's columns")


@dataclass(eq=False)
class HashedLookup(NativeOp):
    """Rows of W by ids (Gather, axis 0): y [*ids.shape, cols] float32. Inputs: ids, int32 or int64, of any shape.

    With a bag, "sum" or "mean", the rows along the last axis of ids are taken together: y [*ids.shape[:-1], cols], or
    [..., 1, cols] where keepdims.
    """

    matrix: HashedMatrix
    bag: str = ""
    keepdims: bool = False

    def infer(self, call: Call, ins: Inputs) -> Types:
        ids, cols = need(ins, 0, "indices"), self.matrix.scheme.cols
        if ids.dtype not in INDICES:
            raise OpError(f"indices are {ids.type}; expected int32 or int64")
        if not self.bag:
            return [TensorType(FLOAT32, (*ids.shape, cols))]
        if not ids.shape:
            raise OpError("indices are a scalar; expected bags of them")
        if self.bag == "mean" and ids.shape[-1] == 0 and 0 not in ids.shape[:-1]:
            raise OpError(f"indices are {ids.type}; expected some elements to reduce")
        return [TensorType(FLOAT32, (*ids.shape[:-1], 1, cols) if self.keepdims else (*ids.shape[:-1], cols))]

    def check_values(self, ins: Arrays) -> None:
        ids, rows = ins[0], self.matrix.scheme.rows
        if ids is not None and ids.size and not (-rows <= ids.min() and ids.max() < rows):
            raise OpError(f"indices reach from {ids.min()} to {ids.max()}; expected {-rows} to {rows - 1}")

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        ids, matrix = need(ins, 0, "indices"), self.matrix
        count, bag = ids.type.size, ids.shape[-1] if self.bag else lookup.NO_BAG
        args = matrix.args() | {
            "ids": Buffer("in", 0),
            "id_bytes": ids.dtype.itemsize,
            "count": count,
            "bag": bag,
            "table_rows": matrix.scheme.rows,
            "cols": matrix.scheme.cols,
            "y": Buffer("out", 0),
            "alpha": float(matrix.scale) / (max(bag, 1) if self.bag == "mean" else 1),
        }
        tiles = prod(ids.shape[:-1]) if self.bag else -(-count // lookup.IDS_PER_TILE)
        work = count * matrix.scheme.cols * _hash_ns(matrix, listed=True)
        reason = f"rows hashed where read, the {self.bag} of {bag} at once" if self.bag else "rows hashed where read"
        return Emission.of(matrix.kernel(lookup, "xxh32_lookup"), tiles, args, lookup.SCRATCH_BYTES, work, reason)


@dataclass(eq=False)
class HashedExpand(NativeOp):
    """W itself, [rows, cols] float32: for the places where nothing can be fused with it. No inputs."""

    matrix: HashedMatrix

    def infer(self, call: Call, ins: Inputs) -> Types:
        return [TensorType(FLOAT32, (self.matrix.scheme.rows, self.matrix.scheme.cols))]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        rows, cols = outs[0].shape
        args = _block_args(self.matrix) | {
            "rows": rows,
            "outputs": cols,
            "y": Buffer("out", 0),
            "y_row_stride": cols,
            "alpha": float(self.matrix.scale),
        }
        tiles = -(-rows // blocks.CHUNK) * -(-cols // blocks.STRIP)
        kernel, work = self.matrix.kernel(blocks, "expand"), _NS_HASH * rows * cols
        reason = "W is materialised: its consumer cannot be fused with it"
        return Emission.of(kernel, tiles, args, blocks.EXPAND_SCRATCH_BYTES, work, reason)


def emit_product(matrix: HashedMatrix, source: Rows, transposed: bool = False) -> Emission:
    """Of all candidates, the kernels that should take the least time, with the work that usual data takes them."""
    best = min(candidates(matrix, source, transposed), key=lambda e: e.work)
    return replace(best, calls=[replace(call, work=best.usual * call.work) for call in best.calls], usual=1.0)


def candidates(matrix: HashedMatrix, source: Rows, transposed: bool = False) -> list[Emission]:
    """Every choice of kernels that computes rows @ W, or rows @ W^T, whatever the data is."""
    found = _by_hash(matrix, source, transposed)
    return [*found, _whole_emission(matrix, source, transposed)] if matrix.materialise else found


def _whole_emission(matrix: HashedMatrix, source: Rows, transposed: bool) -> Emission:
    """The product with W held as it is."""
    cols = matrix.scheme.cols
    weights = dense_weights(
        lambda: matrix.take_whole(lambda out: HashedExpand(matrix).run(Call({}, 0), [], [out])), cols, transposed
    )
    made = dense_emission(source, weights)
    return replace(made, reason=f"W is held, by the memory budget; {made.reason}")


def _by_hash(matrix: HashedMatrix, source: Rows, transposed: bool) -> list[Emission]:
    if isinstance(matrix.scheme, Dyadic):
        if not matrix.in_range:
            why = "not finite" if not matrix.finite else "outside the transform's safe range"
            return [_block_emission(matrix, source, transposed, reason=f"the weights are {why}: no transform")]
        if transposed:
            return [_dyadic_transposed(matrix, source)]
        if SCALAR:
            return [_dyadic_small(matrix, source)]
        found = [_dyadic_rows(matrix, source)]
        return found if source.patches is None else [*found, _dyadic_pixels(matrix, source)]
    if SCALAR and not transposed and source.patches is None:
        return [_xxh32_small(matrix, source)]
    together = _block_emission(matrix, source, transposed)
    if transposed or source.patches is not None:
        return [together]
    alone = _xxh32_rows_emission(matrix, source)
    found = [together, alone]
    counted = _NS_COUNT * source.rows * source.inputs < COUNTING * together.work
    if matrix.finite and counted and alone.work * FEWEST < together.work < alone.work:
        found.append(_xxh32_by_zeros(source, together, alone))
    return found


def _xxh32_by_zeros(source: Rows, together: Emission, alone: Emission) -> Emission:
    """Either of two emissions, by how many of the inputs are zero."""
    fixed = _listing_ns(source)
    share = (together.work - fixed) / (alone.work - fixed)
    most = int(source.rows * source.inputs * min(1.0, max(0.0, share)))
    flag: Arguments = {"sparse": Buffer("temp", 0)}
    count = KernelCall(xxh32.count_inputs, 1, source.args() | flag | {"most": most}, 0, 0.0)
    either = [replace(call, args={**call.args, **flag}) for call in (*alone.calls, *together.calls)]
    work = 0.9 * min(together.work, alone.work)
    calls = [count, *(replace(call, work=work / len(either)) for call in either)]
    reason = f"{alone.choice} up to {most} non-zero inputs in {source.rows} rows, else {together.choice}"
    return Emission(calls, (8,), alone.choice + " or " + together.choice, reason)


def _args(matrix: HashedMatrix, source: Rows) -> Arguments:
    """The source's arguments and the matrix's, x scaled as the stored weights are."""
    return source.args() | matrix.args() | {"x_scale": float(matrix.scale)}


def _block_args(matrix: HashedMatrix) -> Arguments:
    kind = blocks.DYADIC_KIND if isinstance(matrix.scheme, Dyadic) else blocks.XXH32_KIND
    return matrix.args() | {"kind": kind, "parameter": matrix.parameter}


def _hash_ns(matrix: HashedMatrix, listed: bool) -> float:
    """Of one virtual weight: its share of a hash, and the read of w from whichever cache holds it.

    listed: read for the inputs that are not zero, one by one; otherwise for a tile of W.
    """
    near, farther = (_LISTED if listed else _FILLED)[matrix.parameter >= GROUPED]
    return _NS_HASH / matrix.parameter + near + farther * max(0.0, log2(matrix.w.nbytes / FIRST_CACHE))


def _block_emission(
    matrix: HashedMatrix, source: Rows, transposed: bool = False, first_output: int = 0, reason: str = ""
) -> Emission:
    args = _args(matrix, source) | _block_args(matrix)
    args |= {"transposed": int(transposed), "first_output": first_output}
    fill = _NS_FILL_SLOWLY if transposed or isinstance(matrix.scheme, Dyadic) else _hash_ns(matrix, listed=False)
    filled = fill * source.inputs * (-(-source.outputs // 16) * 16)
    if source.patches is not None:
        kernel, tiles = matrix.kernel(pixel_blocks, "pixel_block"), pixel_tiles(source)
        work = (
            pixel_work(source) + source.rows // source.image_rows * -(-source.image_rows // pixel_blocks.BLOCK) * filled
        )
        reason = reason or "128 pixels share each hashed tile of W"
        return Emission.of(kernel, tiles, args, pixel_blocks.SCRATCH_BYTES, work, reason)
    tiles = block_tiles(source.rows, source.outputs)
    row_blocks, multiplied = -(-source.rows // blocks.ROW_BLOCK), -(-source.outputs // 32) * 32
    work = _NS_ROW + row_blocks * filled + NS_PER_MULTIPLY * source.inputs * source.rows * multiplied
    work += row_blocks * _NS_TILE + source.rows * (_NS_FINISH * source.outputs + _NS_READ_ROW * source.inputs)
    reason = reason or f"{source.rows} rows share each hashed tile of W"
    return Emission.of(matrix.kernel(blocks, "block"), tiles, args, blocks.SCRATCH_BYTES, work, reason)


def _listing_ns(source: Rows) -> float:
    """Of what is done with inputs of which none may count."""
    return source.rows * (_NS_ROW + _NS_LIST * source.inputs)


def _xxh32_rows_emission(matrix: HashedMatrix, source: Rows) -> Emission:
    args = _args(matrix, source) | {"skip_zeros": int(matrix.finite)}
    hashed = source.outputs if matrix.parameter < GROUPED else -(-source.outputs // 16) * 16
    work = _listing_ns(source) + source.rows * source.inputs * hashed * _hash_ns(matrix, listed=True)
    args["strip"] = strip = xxh32.STRIP if work < SPLIT_NS * source.rows else xxh32.STRIP // 4
    tiles = source.rows * -(-source.outputs // strip)
    reason = f"{source.rows} rows: hashed inline, " + ("zero inputs skipped" if matrix.finite else "no zero skipped")
    made = Emission.of(matrix.kernel(xxh32, "xxh32_row"), tiles, args, xxh32.SCRATCH_BYTES, work, reason)
    return replace(made, usual=_SKIPPING if matrix.finite else 1.0)


def _xxh32_small(matrix: HashedMatrix, source: Rows) -> Emission:
    """Row by row in little memory."""
    args = _args(matrix, source) | {"skip_zeros": int(matrix.finite)}
    work = _listing_ns(source) + source.rows * source.inputs * source.outputs * _hash_ns(matrix, listed=True)
    scratch = xxh32_small.small_scratch_bytes(source.inputs, source.outputs, matrix.parameter)
    made = Emission.of(matrix.kernel(xxh32_small, "xxh32_small"), source.rows, args, scratch, work, "hashed inline")
    return replace(made, usual=_SKIPPING if matrix.finite else 1.0)


def _tables(matrix: HashedMatrix, source: Rows) -> Arguments:
    """What every kernel of the dyadic scheme takes."""
    return _args(matrix, source) | {
        "places": lambda: matrix.places,
        "row_signs": lambda: matrix.row_signs,
        "col_signs": lambda: matrix.col_signs,
    }


def _dyadic_args(matrix: HashedMatrix, source: Rows, direct_below: int = 0) -> Arguments:
    return _tables(matrix, source) | {
        "spectrum": matrix.take_spectrum,
        "chunks": lambda: matrix.chunks,
        "chunk_count": len(matrix.chunks),
        "direct_below": direct_below,
        "tail": dyadic.best_tail(matrix.dyadic.width, LANES, matrix.place_count),
    }


def _dyadic_rows(matrix: HashedMatrix, source: Rows) -> Emission:
    scheme = matrix.dyadic
    width, groups = scheme.width, scheme.groups
    transforms = sum(
        dyadic.transform_ns(width * lanes // 16, lanes, matrix.place_count, tail)
        for _, lanes, _, tail in matrix.chunks.tolist()
    )
    ends = _NS_FOLD * source.inputs + _NS_STAGE * width / 16 * (8 + log2(width)) + _NS_FINISH * source.outputs
    gathered = _NS_PATCH * source.inputs if source.patches is not None else 0.0
    row_ns = _NS_ROW + ends + transforms + gathered
    direct_below = int((transforms + ends) / (_NS_XOR * source.outputs))
    args = _dyadic_args(matrix, source, direct_below)
    scratch = dyadic.row_scratch_bytes(width, source.inputs, source.outputs, groups)
    reason = f"Walsh-Hadamard over {groups} groups of {width}"
    if direct_below:
        reason += f"; by XOR up to {direct_below} non-zero inputs"
    if source.patches is None and len(matrix.chunks) > 1 and row_ns > SPLIT_NS and source.rows < FEW_SPLIT:
        args |= {"folded": Buffer("temp", 0), "direct": Buffer("temp", 1), "raw": Buffer("temp", 2)}
        kernel = matrix.kernel(dyadic, "dyadic_inverse")
        tiles, inner = source.rows * len(matrix.chunks), dyadic.inverse_scratch_bytes(width)
        calls = [
            KernelCall(dyadic.dyadic_fold, source.rows, args, inner, source.rows * ends / 2),
            KernelCall(kernel, tiles, args, inner, source.rows * transforms),
            KernelCall(dyadic.dyadic_finish, source.rows, args, 0, source.rows * ends / 2),
        ]
        raw = dyadic.raw_floats(source.outputs, groups)
        temps = (4 * (width + LANES) * source.rows, 8 * source.rows, 4 * raw * source.rows)
        return Emission(calls, temps, kernel.name, f"{reason}, chunk by chunk")
    kernel = matrix.kernel(dyadic, "dyadic_row")
    return Emission.of(kernel, source.rows, args, scratch, source.rows * row_ns, reason)


def spectrum_held(op: HashedProduct | HashedConv) -> tuple[str, int]:
    """Which spectrum any plan of the op has its matrix take, and its bytes beside those of w."""
    matrix = op.matrix
    if not matrix.in_range:
        return "none", 0
    if SCALAR and not (isinstance(op, HashedProduct) and op.transposed):
        return "bare", matrix.w.nbytes if matrix.survives else 0
    return "in chunks", matrix.spectrum_bytes


def _dyadic_small(matrix: HashedMatrix, source: Rows) -> Emission:
    """Row by row with the weight vector as the one large constant, in integers where that is what the core has."""
    scheme = matrix.dyadic
    width, groups = scheme.width, scheme.groups
    args = _tables(matrix, source)
    gathered = source.inputs if source.patches is not None else 0
    stages = groups * width / LANES * (2 * log2(width) + 10)
    work = _NS_STAGE * stages + _NS_FOLD * source.inputs + _NS_FINISH * source.outputs + _NS_PATCH * gathered
    kernel = matrix.kernel(dyadic_small, "dyadic_small")
    scratch, how = dyadic_small.small_scratch_bytes(width, gathered), "one by one"
    if matrix.survives:
        kernel, how = dyadic_small.dyadic_small_spectrum, "one by one, its spectrum held in place of w"
        args["w"] = lambda: matrix.bare_spectrum
    fits = width <= dyadic_integer.LARGEST_WIDTH and source.inputs <= dyadic_integer.LARGEST_INPUTS
    if ISA == INTEGER and matrix.w.dtype == np.int8 and fits:
        kernel, how = dyadic_integer.dyadic_integer_i8, "one by one, in integers"
        args["norms"] = lambda: matrix.norms
    reason = f"Walsh-Hadamard over {groups} groups of {width}, {how}"
    return Emission.of(kernel, source.rows, args, scratch, source.rows * (_NS_ROW + work), reason)


def _dyadic_pixels(matrix: HashedMatrix, source: Rows) -> Emission:
    scheme = matrix.dyadic
    width, groups = scheme.width, scheme.groups
    tail = dyadic.best_tail(width, LANES, matrix.place_count)
    one = dyadic.transform_ns(width, LANES, matrix.place_count, tail) + _NS_UNPACK * width
    ends = _NS_PIXEL * source.inputs + _NS_STAGE * width * (6 + log2(width)) + _NS_OUTPUT * source.outputs
    kernel = matrix.kernel(dyadic_pixels, "dyadic_pixels")
    tiles = source.rows // source.image_rows * ceil(source.image_rows / PIXELS)
    scratch = dyadic_pixels.pixel_scratch_bytes(width, source.inputs, source.outputs, groups)
    work, reason = tiles * (_NS_ROW + groups * one + ends), f"Walsh-Hadamard over {groups} groups of {width}"
    return Emission.of(kernel, tiles, _dyadic_args(matrix, source), scratch, work, f"{reason}, 16 pixels at once")


def _dyadic_transposed(matrix: HashedMatrix, source: Rows) -> Emission:
    scheme = matrix.dyadic
    kernel = matrix.kernel(dyadic_transposed, "dyadic_transposed")
    work = _NS_STAGE / 8 * scheme.buckets * (log2(scheme.width) + 4) + 4 * (source.inputs + source.outputs)
    scratch = dyadic_transposed.transposed_scratch_bytes(scheme.width)
    args, reason = _dyadic_args(matrix, source), "the transpose, by Walsh-Hadamard transform"
    return Emission.of(kernel, source.rows, args, scratch, source.rows * work, reason)
