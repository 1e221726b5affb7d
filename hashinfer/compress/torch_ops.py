"""ONNX ops as differentiable PyTorch functions, in the versions of opset 18 and later.

Each takes the node and its inputs, None where one is left out, and gives one tensor or a tuple of them. Numbers that
decide shapes are read from tensors as they come: this is for training on the CPU or a device, not for export.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hashinfer.errors import UnsupportedError, at_node
from hashinfer.model.graph import Node

Result = Tensor | tuple[Tensor, ...]
Function = Callable[..., Result]

OPS: dict[str, Function] = {}
CHECKS: dict[str, Callable[[Node], str | None]] = {}
"""What of an op's attributes is not supported here, in words, None if all is."""

DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def op(*names: str) -> Callable[[Function], Function]:
    """Decorator: registers a function for some op types."""

    def register(function: Function) -> Function:
        for name in names:
            OPS[name] = function
        return function

    return register


def check(*names: str) -> Callable[[Callable[[Node], str | None]], Callable[[Node], str | None]]:
    """Decorator: registers a check of some op types' attributes."""

    def register(function: Callable[[Node], str | None]) -> Callable[[Node], str | None]:
        for name in names:
            CHECKS[name] = function
        return function

    return register


def _simple(name: str, function: Callable[..., Tensor]) -> None:
    OPS[name] = lambda _node, *xs: function(*xs)


_SIMPLE: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "Neg": torch.neg,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Erf": torch.erf,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "Relu": torch.relu,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "HardSwish": functional.hardswish,
    "Mish": functional.mish,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Sign": torch.sign,
    "IsNaN": torch.isnan,
    "Not": torch.logical_not,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Where": torch.where,
    "MatMul": torch.matmul,
    "Identity": lambda x: x,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "Dropout": lambda x, *_: (x, torch.ones_like(x, dtype=torch.bool)),
    "Div": lambda a, b: a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),
    "Pow": lambda a, b: torch.pow(a, b).to(a.dtype),
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Tile": lambda x, repeats: x.repeat(numbers(repeats)),
    "CastLike": lambda x, like: x.to(like.dtype),
    "Expand": lambda x, shape: x.expand(np.broadcast_shapes(tuple(x.shape), tuple(numbers(shape)))),
    "Squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(numbers(axes))),
    "Size": lambda x: torch.tensor(x.numel(), dtype=torch.int64),
}
for _name, _function in _SIMPLE.items():
    _simple(_name, _function)


@op("Shape")
def _shape(node: Node, x: Tensor) -> Tensor:
    start, end = node.attrs.get("start", 0), node.attrs.get("end", x.ndim)
    return torch.tensor(list(x.shape)[slice(start, end)], dtype=torch.int64)


@op("Mod")
def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.attrs.get("fmod", 0) else torch.remainder(a, b)


_FOLDED: dict[str, Callable[..., Tensor]] = {
    "Min": torch.minimum,
    "Max": torch.maximum,
    "Sum": torch.add,
    "Mean": torch.add,
}


@op(*_FOLDED)
def _fold(node: Node, *xs: Tensor) -> Tensor:
    out: Tensor = functools.reduce(_FOLDED[node.op_type], xs)
    return out / len(xs) if node.op_type == "Mean" else out


@op("Clip")
def _clip(_node: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


_OF_ONE: dict[str, Callable[..., Tensor]] = {
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "Elu": lambda x, alpha=1.0: functional.elu(x, alpha),
    "Celu": lambda x, alpha=1.0: functional.celu(x, alpha),
    "Selu": lambda x, alpha=1.6732631921768188, gamma=1.0507010221481323: functional.elu(x, alpha) * gamma,
    "Gelu": lambda x, approximate="none": functional.gelu(x, approximate=approximate),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: (x * alpha + beta).clamp(0, 1),
    "ThresholdedRelu": lambda x, alpha=1.0: torch.where(x > alpha, x, torch.zeros_like(x)),
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "LogSoftmax": lambda x, axis=-1: torch.log_softmax(x, axis),
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Transpose": lambda x, perm=None: x.permute(*(perm or range(x.ndim - 1, -1, -1))),
}
"""Functions of one tensor and of the attributes."""


@op(*_OF_ONE)
def _of_one(node: Node, x: Tensor) -> Tensor:
    return _OF_ONE[node.op_type](x, **node.attrs)


@op("Gemm")
def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if node.attrs.get("transA", 0) else a
    b = b.t() if node.attrs.get("transB", 0) else b
    return gemm_epilogue(node, a @ b, c)


def gemm_epilogue(node: Node, product: Tensor, c: Tensor | None) -> Tensor:
    """alpha times the product plus beta times c."""
    alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
    y = product if alpha == 1 else product * alpha
    return y if c is None else y + (c if beta == 1 else c * beta)


@op("Einsum")
def _einsum(node: Node, *xs: Tensor) -> Tensor:
    return torch.einsum(node.attrs["equation"], *xs)


def _pads(node: Node, x: Tensor, kernel: tuple[int, ...]) -> list[int]:
    """Begins and ends of the spatial dimensions."""
    rank = len(kernel)
    mode = node.attrs.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "VALID"):
        return list(node.attrs.get("pads", [0] * 2 * rank)) if mode == "NOTSET" else [0] * 2 * rank
    begins, ends = [], []
    strides = node.attrs.get("strides", [1] * rank)
    dilations = node.attrs.get("dilations", [1] * rank)
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
        total = max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def _padded(x: Tensor, pads: list[int], value: float = 0.0) -> Tensor:
    if not any(pads):
        return x
    rank = len(pads) // 2
    order = [p for at in reversed(range(rank)) for p in (pads[at], pads[at + rank])]
    return functional.pad(x, order, value=value)


@op("Conv")
def _conv(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rank = weight.ndim - 2
    pads = _pads(node, x, tuple(weight.shape[2:]))
    even = pads[:rank] == pads[rank:]
    x, inside = (x, pads[:rank]) if even else (_padded(x, pads), [0] * rank)
    function = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return function(
        x,
        weight,
        bias,
        tuple(node.attrs.get("strides", [1] * rank)),
        tuple(inside),
        tuple(node.attrs.get("dilations", [1] * rank)),
        node.attrs.get("group", 1),
    )


@check("MaxPool", "AveragePool")
def _pool_check(node: Node) -> str | None:
    if len(node.outputs) > 1 and node.outputs[1]:
        return "its output of indices"
    if node.attrs.get("ceil_mode", 0):
        return "ceil_mode"
    if any(d != 1 for d in node.attrs.get("dilations", ())) and node.op_type == "AveragePool":
        return "dilations"
    return None


@op("MaxPool")
def _max_pool(node: Node, x: Tensor) -> Tensor:
    kernel = tuple(node.attrs["kernel_shape"])
    rank = len(kernel)
    low = float("-inf") if x.is_floating_point() else 0
    x = _padded(x, _pads(node, x, kernel), low)
    function = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    strides, dilations = node.attrs.get("strides", [1] * rank), node.attrs.get("dilations", [1] * rank)
    return function(x, kernel, tuple(strides), 0, tuple(dilations))


@op("AveragePool")
def _average_pool(node: Node, x: Tensor) -> Tensor:
    kernel = tuple(node.attrs["kernel_shape"])
    rank = len(kernel)
    pads, strides = _pads(node, x, kernel), tuple(node.attrs.get("strides", [1] * rank))
    function: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    sums = function(_padded(x, pads), kernel, strides)
    if any(pads) and not node.attrs.get("count_include_pad", 0):
        sums = sums / function(_padded(torch.ones_like(x[:1, :1]), pads), kernel, strides)
    return sums  # type: ignore[no-any-return]


@check("BatchNormalization")
def _batch_norm_check(node: Node) -> str | None:
    return "training_mode" if node.attrs.get("training_mode", 0) else None


@op("BatchNormalization")
def _batch_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    return functional.batch_norm(x, mean, variance, scale, bias, False, 0.0, node.attrs.get("epsilon", 1e-5))


@op("InstanceNormalization")
def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return functional.instance_norm(x, None, None, scale, bias, True, 0.0, node.attrs.get("epsilon", 1e-5))


@op("GroupNormalization")
def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.attrs["num_groups"]
    if scale.numel() != x.shape[1]:  # One number a group, before opset 21.
        scale, bias = (v.repeat_interleave(x.shape[1] // groups) for v in (scale, bias))
    return functional.group_norm(x, groups, scale, bias, node.attrs.get("epsilon", 1e-5))


@check("LayerNormalization")
def _layer_norm_check(node: Node) -> str | None:
    return "its outputs of mean and deviation" if any(node.outputs[1:]) else None


@op("LayerNormalization")
def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = node.attrs.get("axis", -1) % x.ndim
    y = functional.layer_norm(x, x.shape[axis:], None, None, node.attrs.get("epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


@op("RMSNormalization")
def _rms_norm(node: Node, x: Tensor, scale: Tensor) -> Tensor:
    axis = node.attrs.get("axis", -1) % x.ndim
    return functional.rms_norm(x, x.shape[axis:], None, node.attrs.get("epsilon", 1e-5)) * scale


@op("LpNormalization")
def _lp_norm(node: Node, x: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(x, node.attrs.get("p", 2), node.attrs.get("axis", -1), keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


def numbers(x: Tensor | None) -> list[int]:
    """The whole numbers of a tensor that says a shape, axes or a place."""
    return [] if x is None else [int(v) for v in x.reshape(-1).tolist()]


@op("Reshape")
def _reshape(node: Node, x: Tensor, shape: Tensor) -> Tensor:
    wanted = numbers(shape)
    if not node.attrs.get("allowzero", 0):
        wanted = [x.shape[at] if d == 0 else d for at, d in enumerate(wanted)]
    return x.reshape(wanted)


@op("Unsqueeze")
def _unsqueeze(_node: Node, x: Tensor, axes: Tensor) -> Tensor:
    wanted = numbers(axes)
    rank = x.ndim + len(wanted)
    for axis in sorted(a % rank for a in wanted):
        x = x.unsqueeze(axis)
    return x


@op("Concat")
def _concat(node: Node, *xs: Tensor) -> Tensor:
    return torch.cat(xs, node.attrs["axis"])


@op("Split")
def _split(node: Node, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = node.attrs.get("axis", 0)
    if sizes is not None:
        return tuple(torch.split(x, numbers(sizes), axis))
    return tuple(torch.split(x, -(-x.shape[axis] // len(node.outputs)), axis))


@op("Slice")
def _slice(
    _node: Node, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
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


@op("Gather")
def _gather(node: Node, x: Tensor, ids: Tensor) -> Tensor:
    axis = node.attrs.get("axis", 0) % x.ndim
    ids = ids.to(torch.int64)
    flat = torch.where(ids < 0, ids + x.shape[axis], ids)
    return x.index_select(axis, flat.reshape(-1)).reshape(*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])


@op("GatherElements")
def _gather_elements(node: Node, x: Tensor, ids: Tensor) -> Tensor:
    axis = node.attrs.get("axis", 0)
    return torch.gather(x, axis, torch.where(ids < 0, ids + x.shape[axis], ids))


@check("Pad")
def _pad_check(node: Node) -> str | None:
    mode = node.attrs.get("mode", "constant")
    return None if mode in ("constant", "reflect", "edge") else f"mode {mode!r}"


@op("Pad")
def _pad(node: Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}[node.attrs.get("mode", "constant")]
    given = numbers(pads)
    along = [a % x.ndim for a in numbers(axes)] if axes is not None else list(range(x.ndim))
    order = [0] * (2 * x.ndim)
    for at, axis in enumerate(along):
        order[2 * (x.ndim - 1 - axis)] = given[at]
        order[2 * (x.ndim - 1 - axis) + 1] = given[at + len(along)]
    if mode == "constant":
        return functional.pad(x, order, value=0.0 if value is None else value.item())
    while len(order) > 2 and order[-2:] == [0, 0] and len(order) // 2 > x.ndim - 2:
        order = order[:-2]
    return functional.pad(x, order, mode=mode)


@check("Cast")
def _cast_check(node: Node) -> str | None:
    return None if node.attrs["to"] in DTYPES else f"element type {node.attrs['to']}"


@op("Cast")
def _cast(node: Node, x: Tensor) -> Tensor:
    return x.to(DTYPES[node.attrs["to"]])


@op("Constant")
def _constant(node: Node) -> Tensor:
    ((key, value),) = node.attrs.items()
    if key == "value":
        return torch.from_numpy(np.array(value))
    dtype = torch.float32 if key.startswith("value_float") else torch.int64
    return torch.tensor(value, dtype=dtype)


@check("Constant")
def _constant_check(node: Node) -> str | None:
    ((key, value),) = node.attrs.items()
    if key == "value" and value.dtype.kind in "fiub":
        return None
    return None if key in ("value_int", "value_ints", "value_float", "value_floats") else f"attribute {key!r}"


@op("ConstantOfShape")
def _constant_of_shape(node: Node, shape: Tensor) -> Tensor:
    value = node.attrs.get("value")
    if value is None:
        return torch.zeros(numbers(shape))
    return torch.from_numpy(np.array(value)).reshape(()).repeat(numbers(shape))


@op("Range")
def _range(_node: Node, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@op("Trilu")
def _trilu(node: Node, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return torch.triu(x, diagonal) if node.attrs.get("upper", 1) else torch.tril(x, diagonal)


@check("CumSum")
def _cumsum_check(node: Node) -> str | None:
    return next((k for k in ("exclusive", "reverse") if node.attrs.get(k, 0)), None)


@op("CumSum")
def _cumsum(_node: Node, x: Tensor, axis: Tensor) -> Tensor:
    return torch.cumsum(x, int(axis)).to(x.dtype)


def _reduction(name: str, function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> None:
    def reduce(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along = [a % x.ndim for a in (numbers(axes) if axes is not None else node.attrs.get("axes", ()))]
        if not along and node.attrs.get("noop_with_empty_axes", 0):
            return x
        return function(x, tuple(along or range(x.ndim)), bool(node.attrs.get("keepdims", 1)))

    OPS[name] = reduce


for _name, _function in {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep, dtype=x.dtype),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keepdim=keep),
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}.items():
    _reduction(_name, _function)


@check("ArgMax", "ArgMin")
def _arg_check(node: Node) -> str | None:
    return "select_last_index" if node.attrs.get("select_last_index", 0) else None


@op("ArgMax", "ArgMin")
def _arg(node: Node, x: Tensor) -> Tensor:
    function: Any = torch.argmax if node.op_type == "ArgMax" else torch.argmin
    found: Tensor = function(x, node.attrs.get("axis", 0), bool(node.attrs.get("keepdims", 1)))
    return found


@check("DequantizeLinear")
def _dequantize_check(node: Node) -> str | None:
    return "block_size" if node.attrs.get("block_size", 0) else None


@op("DequantizeLinear")
def _dequantize(node: Node, x: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    if scale.numel() > 1:
        shape = [1] * x.ndim
        shape[node.attrs.get("axis", 1)] = -1
        scale, zero = scale.view(shape), None if zero is None else zero.view(shape)
    offset = x.to(torch.int32) if zero is None else x.to(torch.int32) - zero.to(torch.int32)
    return offset.to(scale.dtype) * scale


def unsupported(node: Node) -> str | None:
    """What of a node cannot be turned into PyTorch, as a message; None if it can."""
    if node.domain or node.op_type not in OPS:
        name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        return at_node(node.op_type, node.name, f"the op {name} has no form for training here")
    problem = CHECKS[node.op_type](node) if node.op_type in CHECKS else None
    return None if problem is None else at_node(node.op_type, node.name, f"{problem} has no form for training here")


def apply(node: Node, inputs: list[Tensor | None]) -> tuple[Tensor, ...]:
    """The outputs of a node. Raises UnsupportedError, naming it, where PyTorch refuses what it is given."""
    try:
        made = OPS[node.op_type](node, *inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnsupportedError(at_node(node.op_type, node.name, f"PyTorch refuses it: {reason}")) from error
    return made if isinstance(made, tuple) else (made,)
