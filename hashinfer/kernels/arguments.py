"""The arguments that all products share: where rows come from, where outputs go, what is done on the way out.

Rows of x are numbered over all images: row r is row r % image_rows of image r // image_rows (a plain matrix product
is one image). Strides count elements. Output (r, j) lands at

    y + image * y_image_stride + (r % image_rows) * y_row_stride + j * y_col_stride.

x is multiplied by x_scale where it is read: that is where the scale of an int8 weight vector goes, so that no sum
overflows which would not have done so with the weights themselves.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.hashing import sign_at
from hashinfer.kernels.jit import device, inlined
from hashinfer.kernels.maths import logistic32, tanh32
from hashinfer.kernels.vectors import add16, flip16, float32_array, intp, load16, mul16, relu16, splat16, store16, uintp

PRODUCT = (
    "x",
    "x_row_stride",
    "rows",
    "inputs",
    "outputs",
    "y",
    "y_row_stride",
    "y_col_stride",
    "image_rows",
    "y_image_stride",
    "bias",
    "bias_row_stride",
    "bias_col_stride",
    "alpha",
    "activation",
    "activation_a",
    "activation_b",
    "patches",
    "x_scale",
)
(
    X,
    X_ROW_STRIDE,
    ROWS,
    INPUTS,
    OUTPUTS,
    Y,
    Y_ROW_STRIDE,
    Y_COL_STRIDE,
    IMAGE_ROWS,
    Y_IMAGE_STRIDE,
    BIAS,
    BIAS_ROW_STRIDE,
    BIAS_COL_STRIDE,
    ALPHA,
    ACTIVATION,
    ACTIVATION_A,
    ACTIVATION_B,
    PATCHES,
    X_SCALE,
) = range(len(PRODUCT))

ACTIVATIONS = ("none", "relu", "leaky_relu", "clip", "sigmoid", "tanh")
NONE, RELU, LEAKY_RELU, CLIP, SIGMOID, TANH = range(len(ACTIVATIONS))

NO_LIMIT = 2**62
"""Length given to views over buffers whose true size the plan knows, on which no kernel relies, and the rows of an
image where there is but one. Where an index has 32 bits it is the largest of them."""


def float_argument(value: float) -> int:
    """A float as an argument: the bits of its float32."""
    with np.errstate(over="ignore"):
        return int(np.float32(value).view(np.int32))


@inlined
def float_at(args: Any, index: Any) -> Any:
    """The float argument number `index`, as float32."""
    return np.int32(args[index]).view(np.float32)


@inlined
def row_at(args: Any, r: Any) -> Any:
    """Row r of x, where that is a matrix, and x_scale."""
    return float32_array(args[X] + 4 * r * args[X_ROW_STRIDE], args[INPUTS]), float_at(args, X_SCALE)


@inlined
def activate(value: Any, kind: Any, a: Any, b: Any) -> Any:
    """The fused activation; NaN stays NaN."""
    if kind == NONE:
        return value
    if kind == RELU:
        return np.float32(0.0) if value < np.float32(0.0) else value
    if kind == LEAKY_RELU:
        return value * a if value < np.float32(0.0) else value
    if kind == CLIP:
        low = a if value < a else value
        return b if low > b else low
    return logistic32(value) if kind == SIGMOID else tanh32(value)


@device
def row_start(args: Any, r: Any) -> Any:
    """Where the outputs of row r begin, in elements of y. Once a row: it divides."""
    return r // args[IMAGE_ROWS] * args[Y_IMAGE_STRIDE] + r % args[IMAGE_ROWS] * args[Y_ROW_STRIDE]


@inlined
def epilogue_of(args: Any) -> Any:
    """alpha, activation_a and activation_b as float32: what a loop over finish_by need not convert each time."""
    return float_at(args, ALPHA), float_at(args, ACTIVATION_A), float_at(args, ACTIVATION_B)


@inlined
def finish_by(args: Any, epilogue: Any, start: Any, r: Any, j: Any, total: Any) -> None:
    """Write y[r, j] = activation(alpha * total + bias[r, j]), `start` being row_start of r."""
    alpha, a, b = epilogue
    value = total * alpha
    if args[BIAS] != 0:
        bias = float32_array(args[BIAS], NO_LIMIT)
        value += bias[uintp(r * args[BIAS_ROW_STRIDE] + intp(j) * args[BIAS_COL_STRIDE])]
    value = activate(value, args[ACTIVATION], a, b)
    y = float32_array(args[Y], NO_LIMIT)
    y[uintp(start + intp(j) * args[Y_COL_STRIDE])] = value


@inlined
def finish(args: Any, start: Any, r: Any, j: Any, total: Any) -> None:
    """finish_by where one output is written."""
    finish_by(args, epilogue_of(args), start, r, j, total)


@device
def finish_sums(args: Any, r: Any, j0: Any, nj: Any, sums: Any, at: Any, signs: Any) -> None:
    """y[r, j0 : j0 + nj] from sums[at : at + nj], which it overwrites: finish, sixteen outputs at a time if it can.

    signs: bits by j - j0, as sign_at takes them, of the sums to negate; or None.
    """
    start, step, kind = row_start(args, r), args[Y_COL_STRIDE], args[ACTIVATION]
    y, alpha, biased = float32_array(args[Y], NO_LIMIT), splat16(float_at(args, ALPHA)), args[BIAS] != 0
    bias, bias_at = float32_array(args[BIAS], NO_LIMIT), r * args[BIAS_ROW_STRIDE] + j0
    whole = nj & ~15 if kind <= RELU and (not biased or args[BIAS_COL_STRIDE] == 1) else 0
    for j in range(0, whole, 16):
        value = load16(sums, at + j)
        if signs is not None:
            value = flip16(value, signs[j >> 4])
        value = mul16(value, alpha)
        if biased:
            value = add16(value, load16(bias, bias_at + j))
        if kind == RELU:
            value = relu16(value)
        if step == 1:
            store16(y, start + j0 + j, value)
        else:
            store16(sums, at + j, value)
    if step != 1:
        for j in range(whole):
            y[start + (j0 + j) * step] = sums[at + j]
    for j in range(whole, nj):
        total = sums[at + j]
        finish(args, start, r, j0 + j, total if signs is None else total * sign_at(signs, j))
