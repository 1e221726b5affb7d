"""Activations and the functions they are made of: floating-point in, the same dtype out, element by element.

float16 is computed in float32; where there is a kernel, it takes two float32 arrays of its size.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from hashinfer.kernels import activations
from hashinfer.ops.base import REGISTRY, Array, Arrays, Call, Inputs, Op, Operand, Outputs, Types, register
from hashinfer.ops.blockwise import blockwise
from hashinfer.ops.checks import (
    FLOAT16,
    FLOAT32,
    FLOATS,
    SIGNED,
    DTypes,
    array,
    arrays,
    need,
    need_all,
    need_broadcasts_to,
    need_dtype,
    need_same_dtype,
    wide_dtype,
)
from hashinfer.ops.emission import Emission, KernelOrNumPy, flat_emission


def erf(x: Array) -> Array:
    """Element by element: of float64 alone, whose GELU is rare."""
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), x.dtype)


def elu(x: Array, alpha: float) -> Array:
    y: Array = np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0))
    return y


def sigmoid(x: Array) -> Array:
    y: Array = np.reciprocal(1 + np.exp(-x))
    return y


def softplus(x: Array) -> Array:
    y: Array = np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)
    return y


def gelu(x: Array, by_tanh: bool) -> Array:
    inner = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))) if by_tanh else erf(x * math.sqrt(0.5))
    y: Array = 0.5 * x * (1 + inner)
    return y


@dataclass(eq=False)
class Activation(KernelOrNumPy):
    """A function of x whose other parameters are attributes; `defaults` says which.

    kind: the one of hashinfer.kernels.activations that does it for float32, if there is one.
    """

    function: Callable[..., Array]
    defaults: Mapping[str, float]
    kind: str = ""
    dtypes: DTypes = FLOATS

    def infer(self, call: Call, ins: Inputs) -> Types:
        x = need(ins, 0, "X", self.dtypes)
        return [x.type]

    def emits(self, call: Call, ins: Inputs) -> bool:
        return self.kind in activations.KINDS and need(ins, 0, "X").dtype == FLOAT32

    def number(self, call: Call) -> int:
        """Of the kernel's kind."""
        return activations.KINDS.index(self.kind)

    def emit(self, call: Call, ins: Inputs, outs: Types) -> Emission:
        a, b = (float(call.get(name, self.defaults.get(name, 0.0))) for name in ("alpha", "beta"))
        number = self.number(call)
        more = NS_PER_SMOOTH if number <= activations.SWISH else 0.0
        return flat_emission(activations.activation, outs[0].size, number, more, a=a, b=b)

    def compute(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x = array(ins, 0)
        if x.dtype == FLOAT16 and self.kind in activations.KINDS:
            single = np.empty(x.shape, np.float32)
            self.run_kernels(call, [Operand.of(x.astype(np.float32))], [single])
            np.copyto(outs[0], single, casting="unsafe")
            return
        blockwise(partial(self.function, **self.settings(call)), [x], outs[0], [wide_dtype(x.dtype)])

    def settings(self, call: Call) -> dict[str, Any]:
        """The function's other parameters."""
        return {name: float(call.get(name, default)) for name, default in self.defaults.items()}


NS_PER_SMOOTH = 1.5
"""Rough time of an element beyond what every flat kernel takes."""

ACTIVATIONS: dict[str, tuple[Callable[..., Array], dict[str, float]]] = {
    "Celu": (lambda x, alpha: np.maximum(x, 0) + alpha * np.expm1(np.minimum(x, 0) / alpha), {"alpha": 1.0}),
    "Elu": (elu, {"alpha": 1.0}),
    "Erf": (erf, {}),
    "HardSigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), {"alpha": 0.2, "beta": 0.5}),
    "HardSwish": (lambda x: x * np.clip(x / 6 + 0.5, 0, 1), {}),
    "LeakyRelu": (lambda x, alpha: np.maximum(x, 0) + alpha * np.minimum(x, 0), {"alpha": 0.01}),
    "Mish": (lambda x: x * np.tanh(softplus(x)), {}),
    "Selu": (
        lambda x, alpha, gamma: gamma * elu(x, alpha),
        {"alpha": 1.67326319217681884765625, "gamma": 1.05070102214813232421875},
    ),
    "Sigmoid": (sigmoid, {}),
    "Softplus": (softplus, {}),
    "Softsign": (lambda x: x / (1 + np.abs(x)), {}),
    "Swish": (lambda x, alpha: x * sigmoid(alpha * x), {"alpha": 1.0}),
    "ThresholdedRelu": (lambda x, alpha: np.where(x > alpha, x, np.zeros_like(x)), {"alpha": 1.0}),
}

REGISTRY.update({name: Activation(function, defaults, name) for name, (function, defaults) in ACTIVATIONS.items()})


class Relu(Activation):
    """max(x, 0), also of whole numbers; alone in one pass of NumPy, as what folds constants runs it."""

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        self.function(array(ins, 0), 0, out=outs[0])


REGISTRY["Relu"] = Relu(np.maximum, {}, "Relu", FLOATS | SIGNED)


class Gelu(Activation):
    """x Phi(x), exactly or by the tanh approximation."""

    def settings(self, call: Call) -> dict[str, Any]:
        return {"by_tanh": self.number(call) == activations.BY_TANH}

    def supports(self, call: Call, ins: Inputs) -> bool:
        return call.text("approximate", "none") in {"none", "tanh"}

    def number(self, call: Call) -> int:
        by_tanh = call.text("approximate", "none") == "tanh"
        return activations.BY_TANH if by_tanh else activations.GELU


REGISTRY["Gelu"] = Gelu(gelu, {}, "Gelu")


@register("PRelu")
class PRelu(Op):
    """Leaky Relu whose slope is an operand that broadcasts to X."""

    dtypes: DTypes = FLOATS | SIGNED | frozenset(map(np.dtype, ("u4", "u8")))

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, slope = need_all(ins, "X", "slope")
        need_dtype(x, self.dtypes, "X")
        need_same_dtype(x, slope, "input 1 (slope)")
        need_broadcasts_to(slope.shape, x.shape, "slope")
        return [x.type]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, slope = arrays(ins, 2)
        blockwise(lambda x, slope: np.where(x < 0, slope * x, x), [x, slope], outs[0], [wide_dtype(x.dtype)] * 2)
