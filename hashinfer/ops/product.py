"""Matrix products and convolutions as kernel calls: what dense and hashed ones share, and the dense ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import zip_longest
from math import prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import arguments, blocks, depthwise, pixel_blocks
from hashinfer.kernels.isa import GATHERS
from hashinfer.ops.base import (
    Array,
    Arrays,
    Call,
    Inputs,
    Operand,
    Outputs,
    Shape,
    TensorType,
    Types,
    broadcast,
    optional,
    register,
)
from hashinfer.ops.checks import FLOAT32, array, need, need_all
from hashinfer.ops.convolution import Geometry
from hashinfer.ops.emission import (
    IN_AND_OUT,
    NS_PER_ELEMENT,
    Argument,
    Arguments,
    Buffer,
    Emission,
    KernelCall,
    KernelOrNumPy,
    NativeOp,
)

MOST_MATRICES = 2**19
"""Of a batch in one call: there is a table of them."""
IMAGES, PIXELS = Buffer("in", 0), Buffer("out", 0)
"""Where a convolution reads and writes by default."""
NS_PER_MULTIPLY = 0.0115 if GATHERS else 0.02
NS_PER_ENTRY = 0.15
"""Rough times, on one thread, of a dense multiply-add and of a patch entry that is read as one lane of sixteen."""


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What is done to each sum on the way out: y = activation(alpha * sum + bias)."""

    alpha: float = 1.0
    activation: str = "none"
    a: float = 0.0
    b: float = 0.0

    def args(self) -> Arguments:
        return {
            "alpha": float(self.alpha),
            "activation": arguments.ACTIVATIONS.index(self.activation),
            "activation_a": float(self.a),
            "activation_b": float(self.b),
        }


@dataclass(frozen=True, slots=True)
class Rows:
    """The left operand of one product: where its rows come from and where its outputs go. Strides count elements."""

    x: Buffer
    x_row_stride: int
    rows: int
    inputs: int
    outputs: int
    y: Buffer
    y_row_stride: int
    y_col_stride: int = 1
    image_rows: int = arguments.NO_LIMIT
    y_image_stride: int = 0
    patches: Array | None = None
    bias: Mapping[str, Argument] = field(default_factory=dict)
    epilogue: Epilogue = Epilogue()

    def args(self) -> Arguments:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("patches", "bias", "epilogue")}
        patches = 0 if self.patches is None else self.patches
        return {**own, "x_scale": 1.0, "patches": patches, **self.bias, **self.epilogue.args()}


def plain_rows(rows: int, inputs: int, outputs: int, bias: Mapping[str, Argument], epilogue: Epilogue) -> Rows:
    """Rows that lie one behind the other in input 0, and their outputs likewise."""
    return Rows(IMAGES, inputs, rows, inputs, outputs, PIXELS, outputs, bias=bias, epilogue=epilogue)


def dense_weights(w: Argument, pitch: int, transposed: bool = False) -> Arguments:
    """Arguments for weights that are there, in rows of `pitch` elements; transposed: in columns of as many."""
    strides = (1, pitch) if transposed else (pitch, 1)
    return {"w": w, "kind": blocks.DENSE_KIND, "w_row_stride": strides[0], "w_col_stride": strides[1]}


def bias_args(bias: Operand | None, number: int, rows: int, cols: int) -> Arguments:
    """Arguments for a float32 bias that broadcasts to [rows, cols], input `number` of the op."""
    if bias is None:
        return {}
    shape = (1, 1, *bias.shape)[-2:]
    return {
        "bias": Buffer("in", number),
        "bias_row_stride": 0 if shape[0] == 1 and rows != 1 else shape[1],
        "bias_col_stride": 0 if shape[1] == 1 and cols != 1 else 1,
    }


def check_bias(bias: Operand | None, rows: int, cols: int) -> None:
    """Raise OpError unless the bias is float32 and broadcasts to [rows, cols] without widening it."""
    if bias is None:
        return
    if bias.dtype != FLOAT32 or bias.rank > 2 or broadcast(bias.shape, (rows, cols)) != (rows, cols):
        raise OpError(f"the bias is {bias.type}; expected float32 that broadcasts to [{rows}, {cols}]")


def matmul_shape(x: Shape, inputs: int, outputs: int) -> Shape:
    """Shape of x @ W[inputs, outputs]. Raises OpError where the inner sizes differ."""
    if not x or x[-1] != inputs:
        raise OpError(f"x has shape {list(x)}; expected its last dimension to be {inputs}, the inputs of W")
    return (*x[:-1], outputs)


def promoted(a: Shape, b: Shape) -> tuple[Shape, Shape]:
    """The shapes of matmul's operands as matrices: a vector is a row on the left, a column on the right."""
    return (1, *a) if len(a) == 1 else a, (*b, 1) if len(b) == 1 else b


def product_shape(a: Operand, b: Operand) -> Shape:
    """Of a @ b, as NumPy's matmul has it. Raises OpError where the operands do not fit."""
    if not a.shape or not b.shape:
        raise OpError(f"A is {a.type} and B is {b.type}; expected no scalar")
    left, right = promoted(a.shape, b.shape)
    if left[-1] != right[-2]:
        raise OpError(f"A is {a.type} and B is {b.type}: the inner sizes {left[-1]} and {right[-2]} differ")
    cols = () if b.rank == 1 else right[-1:]
    return (*broadcast(left[:-2], right[:-2]), *a.shape[-2:-1], *cols)


def as_matrices(a: Shape, b: Shape) -> tuple[Shape, Shape, Shape, int]:
    """(a, b, batch, rows of a product): all matrices of a are one where b is one."""
    left, right = promoted(a, b)
    if prod(right[:-2]) == 1:
        return left, right, (), prod(left[:-1])
    return left, right, broadcast(left[:-2], right[:-2]), left[-2]


def block_tiles(rows: int, outputs: int) -> int:
    return -(-rows // blocks.ROW_BLOCK) * -(-outputs // blocks.STRIP)


def pixel_tiles(source: Rows) -> int:
    images = source.rows // source.image_rows
    return images * -(-source.image_rows // pixel_blocks.BLOCK) * -(-source.outputs // blocks.STRIP)


def pixel_work(source: Rows) -> float:
    """Nanoseconds of a convolution by pixel blocks, without the filling of W's tiles."""
    lanes = source.rows // source.image_rows * -(-source.image_rows // 32) * 32
    read = NS_PER_ENTRY * -(-source.outputs // blocks.STRIP)
    return lanes * source.inputs * (NS_PER_MULTIPLY * source.outputs + read)


@dataclass(eq=False)
class Fusible(NativeOp):
    """An op whose kernels do an epilogue on the way out."""

    epilogue: Epilogue = Epilogue()


@register("MatMul")
class MatMul(Fusible, KernelOrNumPy):
    """x [..., m, k] @ w [..., k, n], with NumPy's rules for vectors and broadcasting. float32 runs as kernels."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, w = need_all(ins, "A", "B")
        if x.dtype != w.dtype:
            raise OpError(f"A is {x.type} and B is {w.type}; expected one dtype")
        shape = product_shape(x, w)
        check_bias(optional(ins, 2), prod(shape[:-1]), shape[-1] if w.rank > 1 else 1)
        return [TensorType(x.dtype, shape)]

    def emits(self, call: Call, ins: Inputs) -> bool:
        return need(ins, 0, "A").dtype == FLOAT32 and few_matrices(ins, 1)

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        x, w = need_all(ins, "A", "B")
        xs, ws, batch, rows = as_matrices(x.shape, w.shape)
        outputs = ws[-1]
        bias = bias_args(optional(ins, 2), 2, rows, outputs)
        source = plain_rows(rows, xs[-1], outputs, bias, self.epilogue)
        offsets = batch_offsets(xs, ws, batch, rows * outputs)
        return dense_emission(source, dense_weights(Buffer("in", 1), outputs), offsets, prod(batch))

    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        np.copyto(outs[0], np.matmul(array(ins, 0), array(ins, 1)))


def few_matrices(ins: Inputs, b: int) -> bool:
    """Whether a batch has so few products, or none with an output, that a table of them is small beside the outputs."""
    left, right = need(ins, 0, "A").shape, need(ins, b, "B").shape
    pairs = zip_longest(left[-3::-1], right[-3::-1], fillvalue=1)
    return prod(max(pair) for pair in pairs) <= MOST_MATRICES or 0 in (*left[-2:-1], *right[-1:])


def batch_offsets(xs: Shape, ws: Shape, batch: Shape, y_size: int) -> Array:
    """int64 [batches, 3]: elements to add to x, w and y for each matrix product of a batch."""
    count = prod(batch) if y_size else 0
    out = np.zeros((max(count, 1), 3), np.int64)
    if batch and count:
        for column, shape in ((0, xs), (1, ws)):
            steps = np.arange(prod(shape[:-2])).reshape(shape[:-2]) * (shape[-2] * shape[-1])
            out[:, column] = np.broadcast_to(steps, batch).ravel()
        out[:, 2] = np.arange(count) * y_size
    return out


ONE_MATRIX = np.zeros((1, 3), np.int64)
"""The batch_offsets of a product that is no batch."""


def dense_emission(source: Rows, weights: Arguments, offsets: Array = ONE_MATRIX, batches: int = 1) -> Emission:
    """The kernel for a dense product: rows one by one where there are few, blocks of them otherwise."""
    args = source.args() | weights
    if source.patches is not None:
        kernel, scratch = pixel_blocks.pixel_block_dense, pixel_blocks.SCRATCH_BYTES
        reason = "128 pixels share each tile of W"
        return Emission.of(kernel, pixel_tiles(source), args, scratch, pixel_work(source), reason)
    args |= {"offsets": offsets}
    work = NS_PER_MULTIPLY * source.rows * source.inputs * source.outputs * batches
    if source.rows <= 3 and batches == 1:
        tiles = source.rows * -(-source.outputs // blocks.STRIP)
        reason = f"{source.rows} rows: W is read once where it lies"
        return Emission.of(blocks.dense_row, tiles, args, 4 * blocks.STRIP, 4 * work, reason)
    tiles, reason = block_tiles(source.rows, source.outputs) * batches, f"{source.rows} rows share each tile of W"
    return Emission.of(blocks.dense_block, tiles, args, blocks.SCRATCH_BYTES, work, reason)


@register("Gemm")
class Gemm(Fusible, KernelOrNumPy):
    """y = alpha A B + beta C, A [m, k], B [k, n] or [n, k] (transB). The fuse step has folded transA and beta away."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        a, b, c = need(ins, 0, "A"), need(ins, 1, "B"), optional(ins, 2)
        if a.rank != 2 or b.rank != 2 or a.dtype != b.dtype:
            raise OpError(f"A is {a.type} and B is {b.type}; expected two matrices of one dtype")
        rows, inner = a.shape[::-1] if call.get("transA", 0) else a.shape
        inputs, cols = b.shape[::-1] if call.get("transB", 0) else b.shape
        if inner != inputs:
            raise OpError(f"A is {a.type} and B is {b.type}: the inner sizes {inner} and {inputs} differ")
        if c is not None and (c.dtype != a.dtype or broadcast(c.shape, (rows, cols)) != (rows, cols)):
            raise OpError(f"C is {c.type}; expected {a.dtype} that broadcasts to [{rows}, {cols}]")
        return [TensorType(a.dtype, (rows, cols))]

    def emits(self, call: Call, ins: Inputs) -> bool:
        plain = not call.get("transA", 0) and (optional(ins, 2) is None or call.get("beta", 1.0) == 1.0)
        return need(ins, 0, "A").dtype == FLOAT32 and plain

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        b, (rows, cols) = need(ins, 1, "B"), outs[0].shape
        transposed = bool(call.get("transB", 0))
        inputs = b.shape[1] if transposed else b.shape[0]
        bias = bias_args(optional(ins, 2), 2, rows, cols)
        epilogue = replace(self.epilogue, alpha=float(call.get("alpha", 1.0)))
        weights = dense_weights(Buffer("in", 1), b.shape[1], transposed)
        return dense_emission(plain_rows(rows, inputs, cols, bias, epilogue), weights)

    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        a, b, c = array(ins, 0), array(ins, 1), optional(ins, 2)
        y = (a.T if call.get("transA", 0) else a) @ (b.T if call.get("transB", 0) else b)
        y = (y * y.dtype.type(call.get("alpha", 1.0))).astype(outs[0].dtype)
        if c is not None:
            y = y + c * c.dtype.type(call.get("beta", 1.0))
        np.copyto(outs[0], y, casting="unsafe")


MOST_MAPS, MOST_CHANNELS = 2, 4
"""Of a group, output and input planes, where they go plane by plane."""
PLANES_BYTES = 2**20
"""The most scratch for a group's input planes."""


def by_planes(geometry: Geometry) -> bool:
    """Whether a convolution has so few maps in a group that 64 of them side by side would be waste."""
    few = geometry.out_channels <= MOST_MAPS * geometry.groups and geometry.group_channels <= MOST_CHANNELS
    return geometry.groups > 1 and few and depthwise.scratch_bytes(*reach(geometry)) <= PLANES_BYTES


def reach(geometry: Geometry) -> tuple[int, int, int, int]:
    """(planes, lines, elements of a line) that the windows of one output plane lie in, and rows of outputs."""
    rows, cols = geometry.axes
    # What is beyond the last window is left out; the image may end before it.
    return geometry.group_channels, rows.reach, cols.reach, rows.count


def planes_call(geometry: Geometry, args: Mapping[str, Argument]) -> KernelCall:
    """A convolution plane by plane; args: x, y, w, bias, epilogue."""
    g = geometry
    inner, lines, line, _ = reach(geometry)
    rows, cols = (np.arange(axis.kernel) * axis.dilation for axis in g.axes)
    taps = ((np.arange(inner)[:, None, None] * lines + rows[:, None]) * line + cols).astype(np.int64)
    mine: Arguments = {"maps": g.out_channels, "inner": inner, "outer": g.out_channels // g.groups}
    mine |= {"lines": lines, "line": line, "taps": taps, **g.axes[0].args(0), **g.axes[1].args(1)}
    planes = g.batch * g.out_channels
    work = planes * (NS_PER_MULTIPLY * 4 * g.out_pixels * g.patch_size + NS_PER_ELEMENT * inner * lines * line)
    scratch = depthwise.scratch_bytes(*reach(geometry))
    return KernelCall(depthwise.depthwise, planes if g.out_pixels else 0, {**mine, **args}, scratch, work)


@register("Conv")
class Conv(Fusible):
    """Convolution of one or two spatial dimensions, groups and dilations among them, as a product over patches."""

    def supports(self, call: Call, ins: Inputs) -> bool:
        x = optional(ins, 0)
        return x is not None and x.dtype == FLOAT32 and x.rank in (3, 4)

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, w = need_all(ins, "X", "W")
        geometry = Geometry.of(call, x.shape, w.shape)
        check_bias(optional(ins, 2), 1, geometry.out_channels)
        return [TensorType(x.dtype, geometry.out_shape)]

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        x, w = need_all(ins, "X", "W")
        geometry = Geometry.of(call, x.shape, w.shape)
        if by_planes(geometry):
            args = {**IN_AND_OUT, "w": Buffer("in", 1)}
            args |= {"bias": Buffer("in", 2)} if optional(ins, 2) is not None else {}
            only = planes_call(geometry, args | self.epilogue.args())
            return Emission(
                [only], choice="depthwise", reason=f"{geometry.out_channels // geometry.groups} maps a group"
            )
        calls: list[KernelCall] = []
        for group in range(geometry.groups):
            source = conv_rows(geometry, group, optional(ins, 2), self.epilogue)
            own = Buffer("in", 1, 4 * group * source.outputs * source.inputs)
            calls += dense_emission(source, dense_weights(own, source.inputs, transposed=True)).calls
        return Emission(calls, choice=calls[0].kernel.name, reason="128 pixels share each tile of W")


def conv_rows(
    geometry: Geometry, group: int, bias: Operand | None, epilogue: Epilogue, x: Buffer = IMAGES, y: Buffer = PIXELS
) -> Rows:
    """One group of a convolution as a product: a row for each output pixel, a column for each output channel.

    x, y: where images and outputs begin, of four bytes an element.
    """
    pixels, outputs = geometry.out_pixels, geometry.out_channels // geometry.groups
    bias_part: Arguments = {}
    if bias is not None:
        bias_part = {"bias": Buffer("in", 2, 4 * group * outputs), "bias_row_stride": 0, "bias_col_stride": 1}
    return Rows(
        x=replace(x, offset=4 * group * geometry.group_channels * geometry.pixels),
        x_row_stride=0,
        rows=geometry.batch * pixels,
        inputs=geometry.patch_size,
        outputs=outputs,
        y=replace(y, offset=4 * group * outputs * pixels),
        y_row_stride=1,
        y_col_stride=pixels,
        image_rows=max(pixels, 1),
        y_image_stride=geometry.out_channels * pixels,
        patches=geometry.patch_array(),
        bias=bias_part,
        epilogue=epilogue,
    )
