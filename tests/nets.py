"""Small models, made node by node, for tests."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from hashinfer.model.write import expand_node, with_bodies
from hashinfer.schemes import DOMAIN, DOMAIN_VERSION, Dyadic, Scheme, Xxh32

if TYPE_CHECKING:
    from hashinfer.compress.find import Weight

OPSET = 20


def scheme(name: str, rows: int, cols: int, buckets: int, seed: int = 1, parameter: int | None = None) -> Scheme:
    """A scheme by name with about `buckets` buckets."""
    return {"xxh32": Xxh32, "dyadic": Dyadic}[name].fit(rows, cols, buckets, seed, parameter)


def weights(count: int, seed: int = 0) -> np.ndarray:
    """Normal float32 numbers."""
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def stored(weight: Weight, matrix: np.ndarray) -> np.ndarray:
    """The initializer's array of a weight from its W [rows, cols]."""
    return matrix if weight.form in ("plain", "table") else np.ascontiguousarray(matrix.T).reshape(weight.shape)


def model(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, tuple[Any, Sequence[int | str]]],
    outputs: Mapping[str, tuple[Any, Sequence[int | str | None] | None]],
    constants: Mapping[str, np.ndarray],
    opset: int = OPSET,
    functions: Sequence[onnx.FunctionProto] = (),
    imports: Mapping[str, int] | None = None,
) -> ModelProto:
    """A model with the bodies of its Expand nodes. inputs and outputs: name -> (dtype, shape)."""

    def value(name: str, kind: tuple[Any, Any]) -> onnx.ValueInfoProto:
        number = kind[0] if isinstance(kind[0], int) else helper.np_dtype_to_tensor_dtype(np.dtype(kind[0]))
        return helper.make_tensor_value_info(name, number, kind[1])

    graph = helper.make_graph(
        list(nodes),
        "net",
        [value(n, k) for n, k in inputs.items()],
        [value(n, k) for n, k in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    opsets = {"": opset, DOMAIN: DOMAIN_VERSION} | dict(imports or {})
    made = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(d, v) for d, v in opsets.items()],
        functions=list(functions),
        ir_version=10,
    )
    return with_bodies(made) if opset >= 18 else made


def node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", **attrs: Any) -> NodeProto:
    """A node of the default domain."""
    return helper.make_node(op_type, list(inputs), list(outputs), name=name or f"{op_type}_{outputs[0]}", **attrs)


def hashed_mlp(sizes: Sequence[int], name: str, compression: float, seed: int = 1, opset: int = OPSET) -> ModelProto:
    """Hashed layers with biases and ReLU between them: x [N, sizes[0]] -> y [N, sizes[-1]]."""
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {}
    current = "x"
    for k, (rows, cols) in enumerate(itertools.pairwise(sizes)):
        last = k == len(sizes) - 2
        layer = scheme(name, rows, cols, max(1, int(rows * cols / compression)), seed + k)
        constants[f"w{k}"] = weights(layer.buckets, seed + k) / np.float32(np.sqrt(rows))
        constants[f"b{k}"] = weights(cols, seed + 100 + k)
        nodes += [
            expand_node(layer, f"w{k}", f"W{k}"),
            node("MatMul", [current, f"W{k}"], [f"m{k}"]),
            node("Add", [f"m{k}", f"b{k}"], ["y" if last else f"a{k}"]),
        ]
        if not last:
            nodes.append(node("Relu", [f"a{k}"], [f"r{k}"]))
        current = f"r{k}"
    return model(
        nodes, {"x": (np.float32, ["N", sizes[0]])}, {"y": (np.float32, ["N", sizes[-1]])}, constants, opset=opset
    )


def single(layer: Scheme, w: np.ndarray | None = None, opset: int = OPSET) -> ModelProto:
    """x @ W for one scheme, with W as a second output when `opset` allows the bodies."""
    w = weights(layer.buckets) if w is None else w
    return model(
        [expand_node(layer, "w", "W"), node("MatMul", ["x", "W"], ["y"])],
        {"x": (np.float32, ["N", layer.rows])},
        {"y": (np.float32, ["N", layer.cols])},
        {"w": w},
        opset=opset,
    )
