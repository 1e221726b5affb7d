"""LSTM and GRU over whole sequences: a tile is one sequence in one direction.

Weights are transposed first, by a call of their own, so that gates are the lanes. Sums run over inputs and over the
hidden state, in float32: a gate's sum is within (inputs + hidden + 4) eps sum |x| |w| of the exact one, and errors then
pass from step to step. Scratch: two states, and gates.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.elementwise import clear, convert
from hashinfer.kernels.jit import device, entry, inlined
from hashinfer.kernels.maths import logistic32, tanh32
from hashinfer.kernels.vectors import float32_array, fma16, load16, splat16, store16

_NAMES = """
    x w r b h0 c0 y yh yc steps batch inputs hidden backwards
    x_step x_row y_step y_direction y_row s_direction s_row reset_after
"""
FIELDS = tuple(_NAMES.split())
X, W, R, B, H0, C0, Y, YH, YC, STEPS, BATCH, INPUTS, HIDDEN, BACKWARDS = range(14)
X_STEP, X_ROW, Y_STEP, Y_DIRECTION, Y_ROW, S_DIRECTION, S_ROW, RESET_AFTER = range(14, len(FIELDS))
"""w: [directions, inputs, gates hidden]; r: [directions, hidden, gates hidden]; b: [directions, 2 gates hidden], of w,
then of r. b, h0, c0, y, yh, yc: 0 where missing. backwards: bit d is set where direction d runs from the last step to
the first. Strides count floats: of x, of y, and of the states h0, c0, yh, yc. reset_after: linear_before_reset of a
GRU."""


TURNED = ("x", "y", "rows", "cols")


def scratch_bytes(hidden: int) -> int:
    """Scratch of a tile: of a GRU, two states and twice three gates."""
    return 4 * 8 * hidden


@device
def _load(address: Any, at: Any, out: Any) -> None:
    """out = the floats from number `at` on, or 0 where there is no array."""
    if address == 0:
        clear(out)
    else:
        convert(float32_array(address + 4 * at, out.size), out)


@device
def _store(address: Any, at: Any, values: Any) -> None:
    """The floats from number `at` on = values, where there is an array."""
    if address != 0:
        convert(values, float32_array(address + 4 * at, values.size))


@inlined
def _state_at(args: Any, direction: Any, row: Any) -> Any:
    return direction * args[S_DIRECTION] + row * args[S_ROW]


@inlined
def _step_at(args: Any, s: Any, direction: Any, row: Any) -> Any:
    """x of the step that comes s-th, and where its y goes."""
    step = args[STEPS] - 1 - s if (args[BACKWARDS] >> direction) & 1 else s
    x = float32_array(args[X] + 4 * (step * args[X_STEP] + row * args[X_ROW]), args[INPUTS])
    return x, step * args[Y_STEP] + direction * args[Y_DIRECTION] + row * args[Y_ROW]


@inlined
def _weights(args: Any, direction: Any, width: Any) -> Any:
    """w and r of a direction, `width` gates."""
    inputs, hidden = width * args[INPUTS], width * args[HIDDEN]
    w = float32_array(args[W] + 4 * direction * inputs, inputs)
    return w, float32_array(args[R] + 4 * direction * hidden, hidden)


@entry(*TURNED)
def transpose_matrices(args: Any, tile: Any, scratch: Any) -> None:
    """y[tile] = x[tile] transposed, x: [matrices, rows, cols]."""
    rows, cols = args[2], args[3]
    x = float32_array(args[0] + 4 * tile * rows * cols, rows * cols)
    y = float32_array(args[1] + 4 * tile * rows * cols, rows * cols)
    for i in range(rows):
        for k in range(cols):
            y[k * rows + i] = x[i * cols + k]


@device
def _add_product(x: Any, w: Any, width: Any, first: Any, last: Any, gates: Any) -> None:
    """gates[first : last] += x @ w[:, first : last], w: [x.size, width]."""
    whole = first + ((last - first) & ~15)
    for k in range(x.size):
        value, at = splat16(x[k]), k * width
        for g in range(first, whole, 16):
            store16(gates, g, fma16(value, load16(w, at + g), load16(gates, g)))
        for g in range(whole, last):
            gates[g] += x[k] * w[at + g]


@entry(*FIELDS)
def lstm(args: Any, tile: Any, scratch: Any) -> None:
    """i, o, f, c gates: c = f c + i tanh(.), h = o tanh(c), as ONNX's LSTM with its default activations."""
    n, d, row = args[HIDDEN], tile // args[BATCH], tile % args[BATCH]
    width, state = 4 * n, _state_at(args, d, row)
    w, r = _weights(args, d, width)
    h, c = float32_array(scratch, n), float32_array(scratch + 4 * n, n)
    gates = float32_array(scratch + 8 * n, width)
    _load(args[H0], state, h)
    _load(args[C0], state, c)
    for s in range(args[STEPS]):
        x, y_at = _step_at(args, s, d, row)
        _load(args[B], 2 * d * width, gates)
        if args[B] != 0:
            other = float32_array(args[B] + 4 * (2 * d + 1) * width, width)
            for g in range(width):
                gates[g] += other[g]
        _add_product(x, w, width, 0, width, gates)
        _add_product(h, r, width, 0, width, gates)
        for k in range(n):
            c[k] = logistic32(gates[2 * n + k]) * c[k] + logistic32(gates[k]) * tanh32(gates[3 * n + k])
            h[k] = logistic32(gates[n + k]) * tanh32(c[k])
        _store(args[Y], y_at, h)
    _store(args[YH], state, h)
    _store(args[YC], state, c)


@entry(*FIELDS)
def gru(args: Any, tile: Any, scratch: Any) -> None:
    """z, r, h gates: h = (1 - z) tanh(.) + z h, as ONNX's GRU with its default activations."""
    n, d, row = args[HIDDEN], tile // args[BATCH], tile % args[BATCH]
    width, state = 3 * n, _state_at(args, d, row)
    w, r = _weights(args, d, width)
    h, old = float32_array(scratch, n), float32_array(scratch + 4 * n, n)
    mine, states = float32_array(scratch + 8 * n, width), float32_array(scratch + 8 * n + 4 * width, width)
    _load(args[H0], state, h)
    for s in range(args[STEPS]):
        x, y_at = _step_at(args, s, d, row)
        _load(args[B], 2 * d * width, mine)
        _load(args[B], (2 * d + 1) * width, states)
        _add_product(x, w, width, 0, width, mine)
        _add_product(h, r, width, 0, 2 * n, states)
        for g in range(2 * n):
            mine[g] = logistic32(mine[g] + states[g])
        if args[RESET_AFTER] != 0:
            _add_product(h, r, width, 2 * n, width, states)
            for k in range(n):
                states[2 * n + k] *= mine[n + k]
        else:
            for k in range(n):
                old[k] = mine[n + k] * h[k]
            _add_product(old, r, width, 2 * n, width, states)
        for k in range(n):
            new = tanh32(mine[2 * n + k] + states[2 * n + k])
            h[k] = (np.float32(1.0) - mine[k]) * new + mine[k] * h[k]
        _store(args[Y], y_at, h)
    _store(args[YH], state, h)
