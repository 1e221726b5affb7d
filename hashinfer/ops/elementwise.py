"""Ops that one NumPy function, or a few in a row, do element by element; inputs broadcast."""

from dataclasses import dataclass
from math import prod

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import elementwise
from hashinfer.ops.base import (
    REGISTRY,
    Array,
    Arrays,
    Call,
    Inputs,
    Op,
    Outputs,
    Shape,
    TensorType,
    Types,
    broadcast,
    optional,
    register,
)
from hashinfer.ops.blockwise import blockwise
from hashinfer.ops.checks import (
    ANY,
    BOOL,
    FLOAT32,
    FLOATS,
    INTS,
    NUMERIC,
    SIGNED,
    UNSIGNED,
    DTypes,
    all_given,
    array,
    arrays,
    given,
    need,
    need_all,
    need_dtype,
    need_one_element,
    need_same_dtype,
)
from hashinfer.ops.emission import NS_PER_ELEMENT, Arguments, Buffer, Emission, NativeOp

BOOL_TYPE = np.dtype(bool)


def need_no_zero(divisor: Array) -> None:
    """Raise OpError where an integer division would divide by zero."""
    if not divisor.all():
        raise OpError("an integer is divided by zero")


@dataclass(eq=False)
class UfuncOp(Op):
    """A ufunc of inputs of `dtypes`. `result` is the dtype of the output where that is not the inputs'."""

    function: np.ufunc
    dtypes: DTypes
    result: np.dtype[np.bool] | None

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        self.function(*arrays(ins, self.function.nin), out=outs[0])


class Unary(UfuncOp):
    """A ufunc of one input."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X", self.dtypes)
        return [TensorType(self.result or x.dtype, x.shape)]


class IsInf(Unary):
    """Whether x is infinite, of the signs that the attributes ask for."""

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        above = np.inf if call.get("detect_positive", 1) else np.nan
        below = -np.inf if call.get("detect_negative", 1) else np.nan
        blockwise(lambda block: (block == above) | (block == below), [x], outs[0], [x.dtype])


class Binary(UfuncOp):
    """A ufunc of two inputs of one dtype."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        a, b = need_all(ins, "A", "B")
        need_dtype(a, self.dtypes, "A")
        need_same_dtype(a, b, "input 1 (B)")
        return [TensorType(self.result or a.dtype, broadcast(a.shape, b.shape))]


ARITHMETIC = (np.add, np.subtract, np.multiply, np.divide)
"""The kernel's operations in their order: see hashinfer.kernels.elementwise.OPERATIONS."""


class Arithmetic(Binary, NativeOp):
    """A ufunc of two inputs that has a kernel for float32."""

    def emits(self, call: Call, ins: Inputs) -> bool:
        a, b = need_all(ins, "A", "B")
        return a.dtype == FLOAT32 and len(common_axes(a.shape, b.shape)) <= elementwise.AXES

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        axes = common_axes(need(ins, 0, "A").shape, need(ins, 1, "B").shape)
        axes = [(1, 0, 0)] * (elementwise.AXES - len(axes)) + axes
        inner = axes[-1][0]
        pieces = prod(size for size, _, _ in axes[:-1]) * -(-inner // elementwise.TILE)
        together = max(1, elementwise.TILE // max(inner, 1))
        args: Arguments = {"a": Buffer("in", 0), "b": Buffer("in", 1), "y": Buffer("out", 0), "pieces": together}
        args["operation"] = ARITHMETIC.index(self.function)
        for k, (size, a, b) in enumerate(axes):
            args |= {f"n{k}": size, f"a{k}": a, f"b{k}": b}
        return Emission.of(elementwise.arithmetic, -(-pieces // together), args, 0, NS_PER_ELEMENT * outs[0].size)


def common_axes(a: Shape, b: Shape) -> list[tuple[int, int, int]]:
    """Axes of the broadcast of two contiguous operands: (size, stride of a, stride of b), as few as will do."""
    shape, found = broadcast(a, b), list[tuple[int, int, int]]()
    steps = [1, 1]
    for k in range(1, len(shape) + 1):
        strides = []
        for side, own in enumerate((a, b)):
            there = k <= len(own) and own[-k] != 1
            strides.append(steps[side] if there else 0)
            steps[side] *= own[-k] if there else 1
        size = shape[-k]
        if size == 1:
            continue
        if found and strides == [found[-1][0] * s for s in found[-1][1:]]:
            found[-1] = (found[-1][0] * size, *found[-1][1:])
        else:
            found.append((size, strides[0], strides[1]))
    return found[::-1]


class Variadic(UfuncOp):
    """A ufunc folded over one or more inputs of one dtype."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        first, *others = all_given(ins)
        need_dtype(first, self.dtypes, "input 0")
        for at, other in enumerate(others, 1):
            need_same_dtype(first, other, f"input {at}")
        return [TensorType(first.dtype, broadcast(first.shape, *(other.shape for other in others)))]

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        (first, *others), (out,) = given(ins), outs
        if others:
            self.function(first, others[0], out=out)
        else:
            np.copyto(out, first)
        for other in others[1:]:
            self.function(out, other, out=out)


def divide_truncating(a: Array, b: Array) -> Array:
    """The integer quotient rounded towards zero; NumPy rounds down."""
    quotient: Array = a // b
    quotient += (a % b != 0) & ((a < 0) != (b < 0))
    return quotient


class Div(Arithmetic):
    """a / b; of integers, rounded towards zero."""

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        a, b = arrays(ins, 2)
        if a.dtype in FLOATS:
            super().run(call, ins, outs)
            return
        need_no_zero(b)
        if a.dtype in UNSIGNED:
            np.floor_divide(a, b, out=outs[0])
        else:
            blockwise(divide_truncating, [a, b], outs[0], [a.dtype, b.dtype])


class Mod(Binary):
    """Remainder with the sign of b, or with fmod = 1 the sign of a."""

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        a, b = arrays(ins, 2)
        if b.dtype in INTS:
            need_no_zero(b)
        (np.fmod if call.get("fmod", 0) else np.remainder)(a, b, out=outs[0])


class BitShift(Binary):
    """A shifted by B bits; by as many as it has, or more, every bit becomes 0, or the sign if shifted right."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        if (direction := call.text("direction", "")) not in {"LEFT", "RIGHT"}:
            raise OpError(f"direction is {direction!r}; expected 'LEFT' or 'RIGHT'")
        return super().infer(call, ins)

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        a, b = arrays(ins, 2)
        (np.left_shift if call.text("direction", "") == "LEFT" else np.right_shift)(a, b, out=outs[0])


def int_power(base: Array, exponent: Array) -> Array:
    """base ** exponent, modulo 2**64; towards zero where the exponent is negative."""
    whole = np.power(base, np.maximum(exponent, 0))
    if not (exponent < 0).any():
        return whole
    fraction = np.trunc(np.power(base.astype(np.float64), exponent.astype(np.float64)))
    return np.where(exponent < 0, fraction.astype(np.int64), whole)


@register("Pow")
class Pow(Op):
    """x ** y in x's dtype; y may have another one."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, y = need_all(ins, "X", "Y")
        need_dtype(x, NUMERIC, "X")
        need_dtype(y, NUMERIC, "Y")
        return [TensorType(x.dtype, broadcast(x.shape, y.shape))]

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        (x, y), (out,) = arrays(ins, 2), outs
        exponent = y.reshape(-1)[0] if y.size == 1 else None
        if exponent == 2:
            np.square(x, out=out)
        elif exponent == 3:
            np.multiply(x, x, out=out)
            np.multiply(x, out, out=out)
        elif x.dtype == y.dtype and x.dtype in FLOATS:
            np.power(x, y, out=out)
        elif x.dtype in FLOATS:
            blockwise(np.power, [x, y], out, [x.dtype, y.dtype if y.dtype in FLOATS else x.dtype])
        elif y.dtype in FLOATS:
            blockwise(np.power, [x, y], out, [np.dtype(np.float64)] * 2)
        else:
            blockwise(int_power, [x, y], out, [np.dtype(np.int64)] * 2)


class Mean(Variadic):
    """The sum of the inputs over their number."""

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        super().run(call, ins, outs)
        np.divide(outs[0], len(ins), out=outs[0])


TABLE: tuple[tuple[type[UfuncOp], DTypes, np.dtype[np.bool] | None, dict[str, np.ufunc]], ...] = (
    (Unary, NUMERIC, None, {"Abs": np.absolute, "Sign": np.sign}),
    (Unary, FLOATS | SIGNED, None, {"Neg": np.negative}),
    (Unary, INTS, None, {"BitwiseNot": np.invert}),
    (Unary, BOOL, None, {"Not": np.logical_not}),
    (Unary, FLOATS, None, {"Acos": np.arccos, "Acosh": np.arccosh, "Asin": np.arcsin, "Asinh": np.arcsinh}),
    (Unary, FLOATS, None, {"Atan": np.arctan, "Atanh": np.arctanh, "Cos": np.cos, "Cosh": np.cosh}),
    (Unary, FLOATS, None, {"Sin": np.sin, "Sinh": np.sinh, "Tan": np.tan, "Tanh": np.tanh}),
    (Unary, FLOATS, None, {"Exp": np.exp, "Log": np.log, "Reciprocal": np.reciprocal, "Sqrt": np.sqrt}),
    (Unary, FLOATS, None, {"Ceil": np.ceil, "Floor": np.floor, "Round": np.rint}),
    (Unary, FLOATS, BOOL_TYPE, {"IsNaN": np.isnan}),
    (IsInf, FLOATS, BOOL_TYPE, {"IsInf": np.isinf}),
    (Arithmetic, NUMERIC, None, {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}),
    (Div, NUMERIC, None, {"Div": np.divide}),
    (Mod, NUMERIC, None, {"Mod": np.remainder}),
    (BitShift, INTS, None, {"BitShift": np.left_shift}),
    (Binary, BOOL, None, {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}),
    (Binary, INTS, None, {"BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseXor": np.bitwise_xor}),
    (Binary, ANY, BOOL_TYPE, {"Equal": np.equal}),
    (Binary, NUMERIC, BOOL_TYPE, {"Less": np.less, "LessOrEqual": np.less_equal}),
    (Binary, NUMERIC, BOOL_TYPE, {"Greater": np.greater, "GreaterOrEqual": np.greater_equal}),
    (Variadic, NUMERIC, None, {"Max": np.maximum, "Min": np.minimum}),
    (Variadic, FLOATS, None, {"Sum": np.add}),
    (Mean, FLOATS, None, {"Mean": np.add}),
)
"""Ops of a ufunc: how it is applied, to which dtypes, the dtype of the output where it is another."""

for _kind, _dtypes, _result, _ufuncs in TABLE:
    REGISTRY.update({name: _kind(ufunc, _dtypes, _result) for name, ufunc in _ufuncs.items()})


@register("Where")
class Where(Op):
    """X where the condition holds, Y elsewhere."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        condition, x, y = need_all(ins, "condition", "X", "Y")
        need_dtype(condition, BOOL, "condition")
        if x.dtype != y.dtype:
            raise OpError(f"X is {x.type} and Y is {y.type}; expected one dtype")
        return [TensorType(x.dtype, broadcast(condition.shape, x.shape, y.shape))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        condition, x, y = arrays(ins, 3)
        np.copyto(outs[0], y)
        np.copyto(outs[0], x, where=condition)


@register("Clip")
class Clip(Op):
    """min(max(x, low), high); bounds left out do not bind. They are attributes before opset 11."""

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "input", NUMERIC if call.opset >= 12 else FLOATS)
        if call.opset >= 11:
            for at, what in ((1, "min"), (2, "max")):
                bound = optional(ins, at)
                if bound is not None:
                    need_same_dtype(x, bound, what)
                    need_one_element(bound, what)
        return [x.type]

    @np.errstate(all="ignore")
    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, (out,) = array(ins, 0), outs
        # What old exporters write for "none", the range of float32, is infinite in float16.
        bounds = (optional(ins, 1), optional(ins, 2)) if call.opset >= 11 else map(call.attrs.get, ("min", "max"))
        low, high = (None if bound is None else np.asarray(bound).astype(x.dtype).reshape(()) for bound in bounds)
        if low is None:
            np.copyto(out, x) if high is None else np.minimum(x, high, out=out)
        elif high is None:
            np.maximum(x, low, out=out)
        else:
            np.clip(x, low, high, out=out)
