"""ONNX ops as differentiable PyTorch functions, in the versions of opset 18 and later.

Each takes a node's inputs, None where one is left out, and gives one tensor or a tuple of them. Numbers that decide
shapes are read from tensors as they come: this is for training on the CPU or a device, not for export.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from hashinfer.errors import UnsupportedError, first_line
from hashinfer.model.graph import Array, Node
from hashinfer.ops.convolution import window

Result = Tensor | tuple[Tensor, ...]
Function = Callable[..., Result]

DTYPES = {
    TensorProto.DataType.Value(name.upper()): getattr(torch, name)
    for name in ("float", "double", "float16", "bfloat16", "bool", "uint8", "int8", "int16", "int32", "int64")
}
PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


def numbers(x: Tensor) -> list[int]:
    """The whole numbers of a tensor that says a shape, axes or a place."""
    return [int(v) for v in x.reshape(-1).tolist()]


def _clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _group_norm(x: Tensor, scale: Tensor, bias: Tensor, num_groups: int, epsilon: float = 1e-5, **_: Any) -> Tensor:
    if scale.numel() != x.shape[1]:  # One number a group, before opset 21.
        scale, bias = (v.repeat_interleave(x.shape[1] // num_groups) for v in (scale, bias))
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


def _layer_norm(
    x: Tensor, scale: Tensor, bias: Tensor | None = None, axis: int = -1, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    y = functional.layer_norm(x, x.shape[axis:], None, None, epsilon) * scale
    return y if bias is None else y + bias


def _lp_norm(x: Tensor, p: int = 2, axis: int = -1) -> Tensor:
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def _reshape(x: Tensor, shape: Tensor, allowzero: int = 0) -> Tensor:
    wanted = numbers(shape)
    if not allowzero:
        wanted = [x.shape[at] if d == 0 else d for at, d in enumerate(wanted)]
    return x.reshape(wanted)


def _unsqueeze(x: Tensor, axes: Tensor) -> Tensor:
    wanted = numbers(axes)
    rank = x.ndim + len(wanted)
    for axis in sorted(a % rank for a in wanted):
        x = x.unsqueeze(axis)
    return x


def _slice(x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None) -> Tensor:
    first, last = numbers(starts), numbers(ends)
    along = numbers(axes) if axes is not None else list(range(len(first)))
    step = numbers(steps) if steps is not None else [1] * len(first)
    for a, b, axis, s in zip(first, last, along, step, strict=True):
        places = range(x.shape[axis])[slice(a, b if s > 0 or b >= -x.shape[axis] else None, s)]
        if s > 0:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(places.start, places.stop, s),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _gather(x: Tensor, ids: Tensor, axis: int = 0) -> Tensor:
    axis %= x.ndim
    ids = ids.to(torch.int64)
    flat = torch.where(ids < 0, ids + x.shape[axis], ids)
    return x.index_select(axis, flat.reshape(-1)).reshape(*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])


def _pad(
    x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None, mode: str = "constant"
) -> Tensor:
    given = numbers(pads)
    along = [a % x.ndim for a in numbers(axes)] if axes is not None else list(range(x.ndim))
    order = [0] * (2 * x.ndim)
    for at, axis in enumerate(along):
        last = 2 * (x.ndim - axis)
        order[last - 2 : last] = given[at], given[at + len(along)]
    if mode == "constant":
        return functional.pad(x, order, value=0.0 if value is None else value.item())
    while len(order) > 2 and order[-2:] == [0, 0] and len(order) // 2 > x.ndim - 2:
        order = order[:-2]
    return functional.pad(x, order, mode=PAD_MODES[mode])


def _constant(**attributes: Any) -> Tensor:
    ((key, value),) = attributes.items()
    if key == "value":
        return torch.from_numpy(np.array(value))
    return torch.tensor(value, dtype=torch.float32 if key.startswith("value_float") else torch.int64)


def _constant_of_shape(shape: Tensor, value: Array | None = None) -> Tensor:
    if value is None:
        return torch.zeros(numbers(shape))
    return torch.from_numpy(np.array(value)).reshape(()).repeat(numbers(shape))


def _trilu(x: Tensor, k: Tensor | None = None, upper: int = 1) -> Tensor:
    return (torch.triu if upper else torch.tril)(x, 0 if k is None else int(k))


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None = None, axis: int = 1, **_: Any) -> Tensor:
    if scale.numel() > 1:
        shape = [1] * x.ndim
        shape[axis] = -1
        scale, zero = scale.view(shape), None if zero is None else zero.view(shape)
    offset = x.to(torch.int32) if zero is None else x.to(torch.int32) - zero.to(torch.int32)
    return offset.to(scale.dtype) * scale


def _reduction(function: Callable[..., Tensor]) -> Function:
    """The op of a function of a tensor, the axes it goes along, and whether they stay as dimensions of 1."""

    def reduce(x: Tensor, axes: Tensor | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Tensor:
        along = [] if axes is None else [a % x.ndim for a in numbers(axes)]
        if not along and noop_with_empty_axes:
            return x
        return function(x, tuple(along or range(x.ndim)), bool(keepdims))

    return reduce


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        name: getattr(torch, name.lower())
        for name in (
            *("Abs", "Add", "Ceil", "Cos", "Erf", "Exp", "Floor", "IsNaN", "Log", "MatMul", "Mul", "Neg", "Reciprocal"),
            *("Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Tanh", "Where"),
        )
    },
    **{name: getattr(functional, name.lower()) for name in ("HardSwish", "Mish", "Softplus", "Softsign")},
    **{name: getattr(torch, f"logical_{name.lower()}") for name in ("And", "Not", "Or", "Xor")},
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Identity": lambda x: x,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "Dropout": lambda x, *_, **__: (x, torch.ones_like(x, dtype=torch.bool)),
    "Div": lambda a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),
    "Mod": lambda a, b, fmod=0: torch.fmod(a, b) if fmod else torch.remainder(a, b),
    "Pow": lambda a, b: torch.pow(a, b).to(a.dtype),
    "Min": lambda *xs: functools.reduce(torch.minimum, xs),
    "Max": lambda *xs: functools.reduce(torch.maximum, xs),
    "Sum": lambda *xs: functools.reduce(torch.add, xs),
    "Mean": lambda *xs: functools.reduce(torch.add, xs) / len(xs),
    "Clip": _clip,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "Elu": lambda x, alpha=1.0: functional.elu(x, alpha),
    "Celu": lambda x, alpha=1.0: functional.celu(x, alpha),
    "Selu": lambda x, alpha=1.6732631921768188, gamma=1.0507010221481323: functional.elu(x, alpha) * gamma,
    "Gelu": lambda x, approximate="none": functional.gelu(x, approximate=approximate),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (x * alpha + beta).clamp(0, 1),
    "ThresholdedRelu": lambda x, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)),
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "Einsum": lambda *xs, equation: torch.einsum(equation, *xs),
    "BatchNormalization": lambda x, scale, bias, mean, variance, epsilon=1e-5, **_: functional.batch_norm(
        x, mean, variance, scale, bias, False, 0.0, epsilon
    ),
    "InstanceNormalization": lambda x, scale, bias, epsilon=1e-5: functional.instance_norm(
        x, None, None, scale, bias, True, 0.0, epsilon
    ),
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": lambda x, scale, axis=-1, epsilon=1e-5, **_: (
        functional.rms_norm(x, x.shape[axis:], None, epsilon) * scale
    ),
    "LpNormalization": _lp_norm,
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Transpose": lambda x, perm=None: x.permute(*(perm or range(x.ndim - 1, -1, -1))),
    "Tile": lambda x, repeats: x.repeat(numbers(repeats)),
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(numbers(shape)))),
    "Squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(numbers(axes))),
    "Reshape": _reshape,
    "Unsqueeze": _unsqueeze,
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Slice": _slice,
    "Gather": _gather,
    "GatherElements": lambda x, ids, axis=0: torch.gather(x, axis, torch.where(ids < 0, ids + x.shape[axis], ids)),
    "Pad": _pad,
    "Cast": lambda x, to, **_: x.to(DTYPES[to]),
    "CastLike": lambda x, like, **_: x.to(like.dtype),
    "Shape": lambda x, start=0, end=None: torch.tensor(list(x.shape)[start:end], dtype=torch.int64),
    "Size": lambda x: torch.tensor(x.numel(), dtype=torch.int64),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Range": lambda start, limit, delta, **_: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),
    "Trilu": _trilu,
    "CumSum": lambda x, axis, **_: torch.cumsum(x, int(axis)).to(x.dtype),
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(lambda x, *along: x.sum(*along, dtype=x.dtype)),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSumSquare": _reduction(lambda x, *along: x.square().sum(*along)),
    "ReduceL1": _reduction(lambda x, *along: x.abs().sum(*along)),
    "ReduceL2": _reduction(lambda x, *along: x.square().sum(*along).sqrt()),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ArgMax": lambda x, axis=0, keepdims=1, **_: torch.argmax(x, axis, bool(keepdims)),
    "ArgMin": lambda x, axis=0, keepdims=1, **_: torch.argmin(x, axis, bool(keepdims)),
    "DequantizeLinear": _dequantize,
}
"""Functions of the inputs and, by name, the attributes."""


def _of_node(function: Callable[..., Any]) -> Function:
    return lambda node, *xs: function(*xs, **node.attrs)


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if node.attrs.get("transA", 0) else a
    b = b.t() if node.attrs.get("transB", 0) else b
    return gemm_epilogue(node, a @ b, c)


def gemm_epilogue(node: Node, product: Tensor, c: Tensor | None) -> Tensor:
    """alpha times the product plus beta times c."""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    y = product if alpha == 1 else product * alpha
    return y if c is None else y + (c if beta == 1 else c * beta)


def _steps(node: Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and dilations of the spatial dimensions."""
    ones = (1,) * rank
    return node.attrs.get("strides", ones), node.attrs.get("dilations", ones)


def _pads(node: Node, x: Tensor, kernel: Sequence[int]) -> tuple[int, ...]:
    """Begins and ends of the spatial dimensions."""
    none, auto_pad = (0,) * (2 * len(kernel)), node.attrs.get("auto_pad", "NOTSET")
    if auto_pad in ("NOTSET", "VALID"):
        return node.attrs.get("pads", none) if auto_pad == "NOTSET" else none
    sizes = zip(x.shape[2:], kernel, *_steps(node, len(kernel)), strict=True)
    ends = [window(auto_pad, False, *each, (0, 0)).pads for each in sizes]
    return (*(begin for begin, _ in ends), *(end for _, end in ends))


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    if not any(pads):
        return x
    rank = len(pads) // 2
    order = [p for at in reversed(range(rank)) for p in (pads[at], pads[at + rank])]
    return functional.pad(x, order, value=value)


def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.ndim - 2
    pads, (strides, dilations) = _pads(node, x, weight.shape[2:]), _steps(node, rank)
    inside = pads[:rank]
    if inside != pads[rank:]:
        x, inside = _padded(x, pads), (0,) * rank
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return function(x, weight, bias, strides, inside, dilations, node.attrs.get("group", 1))


def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.attrs["kernel_shape"]
    rank = len(kernel)
    low = float("-inf") if x.is_floating_point() else 0
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    strides, dilations = _steps(node, rank)
    return function(_padded(x, _pads(node, x, kernel), low), kernel, strides, 0, dilations)


def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = node.attrs["kernel_shape"]
    rank = len(kernel)
    pads, (strides, _) = _pads(node, x, kernel), _steps(node, rank)
    function: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    sums: Tensor = function(_padded(x, pads), kernel, strides)
    if any(pads) and not node.attrs.get("count_include_pad", 0):
        sums = sums / function(_padded(torch.ones_like(x[:1, :1]), pads), kernel, strides)
    return sums


def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.attrs.get("axis", 0)
    each = -(-x.shape[axis] // len(node.outputs)) if sizes is None else numbers(sizes)
    return tuple(torch.split(x, each, axis))


OPS: dict[str, Function] = {
    **{name: _of_node(function) for name, function in _FUNCTIONS.items()},
    "Gemm": _gemm,
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "Split": _split,
}
"""Functions of the node and the inputs."""

_FURTHER_OUTPUTS = {"MaxPool": "its output of indices", "LayerNormalization": "its outputs of mean and deviation"}
_ZERO_ATTRIBUTES = {
    "MaxPool": ("ceil_mode",),
    "AveragePool": ("ceil_mode",),
    "BatchNormalization": ("training_mode",),
    "CumSum": ("exclusive", "reverse"),
    "ArgMax": ("select_last_index",),
    "ArgMin": ("select_last_index",),
    "DequantizeLinear": ("block_size",),
}
"""Attributes that are not supported here unless they are 0."""


def _problem(node: Node) -> str | None:
    """What of an op's outputs and attributes is not supported here, in words; None if all is."""
    kind, attrs = node.op_type, node.attrs
    if kind in _FURTHER_OUTPUTS and any(node.outputs[1:]):
        return _FURTHER_OUTPUTS[kind]
    for name in _ZERO_ATTRIBUTES.get(kind, ()):
        if attrs.get(name, 0):
            return name
    if kind == "AveragePool" and any(d != 1 for d in attrs.get("dilations", ())):
        return "dilations"
    if kind == "Pad" and attrs.get("mode", "constant") not in PAD_MODES:
        return f"mode {attrs['mode']!r}"
    if kind == "Cast" and attrs["to"] not in DTYPES:
        return f"element type {attrs['to']}"
    if kind == "Constant":
        ((key, value),) = attrs.items()
        able = key in ("value_int", "value_ints", "value_float", "value_floats")
        return None if able or (key == "value" and value.dtype.kind in "fiub") else f"attribute {key!r}"
    return None


def unsupported(node: Node) -> str | None:
    """What of a node cannot be turned into PyTorch, as a message; None if it can."""
    if node.domain or node.op_type not in OPS:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        problem: str | None = f"the op {name}"
    else:
        problem = _problem(node)
    return None if problem is None else node.explain(f"{problem} has no form for training here")


def apply(node: Node, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    """The outputs of a node. Raises UnsupportedError, naming it, where PyTorch refuses what it is given."""
    try:
        made = OPS[node.op_type](node, *inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UnsupportedError(node.explain(f"PyTorch refuses it: {first_line(error)}")) from error
    return made if isinstance(made, tuple) else (made,)
