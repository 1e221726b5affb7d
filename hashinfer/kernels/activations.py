"""Activations of float32, element by element, in tiles of TILE.

Within 4 eps of the largest number met on the way; GELU within 8 eps |x|. NaN stays NaN.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.arguments import float_at
from hashinfer.kernels.elementwise import COUNT, FLAT, KIND, TILE, X, Y
from hashinfer.kernels.jit import device, entry
from hashinfer.kernels.maths import erf32, gelu32, gelu_by_tanh32, logistic32
from hashinfer.kernels.vectors import float32_array

ACTIVATION = (*FLAT, "a", "b")
A, B = range(len(FLAT), len(ACTIVATION))
KINDS = (
    *("Gelu", "Gelu by tanh", "Erf", "Sigmoid", "Swish", "HardSwish", "HardSigmoid"),
    *("LeakyRelu", "ThresholdedRelu", "Softsign", "Relu"),
)
"""By `kind`; a, b: the attributes alpha and beta."""
GELU, BY_TANH, ERF, SIGMOID, SWISH, HARD_SWISH, HARD_SIGMOID, LEAKY_RELU, THRESHOLDED_RELU, SOFTSIGN, RELU = range(
    len(KINDS)
)


@device
def _hard(x: Any, y: Any, a: Any, b: Any, swish: Any) -> None:
    """y = a x + b within [0, 1], and times x for the swish."""
    for k in range(y.size):
        value = a * x[k] + b
        value = np.float32(0.0) if value < np.float32(0.0) else value
        value = np.float32(1.0) if value > np.float32(1.0) else value
        y[k] = x[k] * value if swish else value


@device
def _bent(kind: Any, x: Any, y: Any, a: Any) -> None:
    """The ones that are pieces of straight lines or simple fractions."""
    if kind == LEAKY_RELU:
        for k in range(y.size):
            y[k] = a * x[k] if x[k] < np.float32(0.0) else x[k]
    elif kind == THRESHOLDED_RELU:
        for k in range(y.size):
            # Of NaN, which is not above the threshold, nothing is left: so ONNX has it.
            y[k] = x[k] if x[k] > a else np.float32(0.0)
    elif kind == RELU:
        for k in range(y.size):
            y[k] = np.float32(0.0) if x[k] < np.float32(0.0) else x[k]
    else:
        for k in range(y.size):
            y[k] = x[k] / (np.float32(1.0) + abs(x[k]))


@device
def _smooth(kind: Any, x: Any, y: Any, a: Any) -> None:
    """The ones that go by exp or erf."""
    if kind == GELU:
        for k in range(y.size):
            y[k] = gelu32(x[k])
    elif kind == BY_TANH:
        for k in range(y.size):
            y[k] = gelu_by_tanh32(x[k])
    elif kind == ERF:
        for k in range(y.size):
            y[k] = erf32(x[k])
    elif kind == SIGMOID:
        for k in range(y.size):
            y[k] = logistic32(x[k])
    else:
        for k in range(y.size):
            y[k] = x[k] * logistic32(a * x[k])


@entry(*ACTIVATION)
def activation(args: Any, tile: Any, scratch: Any) -> None:
    """y = one of KINDS, over `count` elements."""
    first, kind = tile * TILE, args[KIND]
    count = min(TILE, args[COUNT] - first)
    x, y = float32_array(args[X] + 4 * first, count), float32_array(args[Y] + 4 * first, count)
    a, b = float_at(args, A), float_at(args, B)
    if kind <= SWISH:
        _smooth(kind, x, y, a)
    elif kind == HARD_SWISH:
        _hard(x, y, np.float32(1 / 6), np.float32(0.5), True)
    elif kind == HARD_SIGMOID:
        _hard(x, y, a, b, False)
    else:
        _bent(kind, x, y, a)
