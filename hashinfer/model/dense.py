"""The dense twin of a hashed model: every Expand folded into the matrix it stands for."""

from math import prod

import numpy as np
import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from hashinfer.errors import MemoryLimitError, ModelError, SchemeError, at_node
from hashinfer.model.protos import (
    DEFAULT_DOMAINS,
    attributes_of,
    captured_names,
    keep,
    plain_copy,
    subgraphs,
    with_inner,
)
from hashinfer.schemes import BY_OP_TYPE, DOMAIN, Scheme

MAX_DENSE_BYTES = 2**31 - 2**20
"""What a protobuf can hold, less room for the rest of the model."""


def dense_twin(model: ModelProto, limit: int) -> ModelProto:
    """A plain ONNX model with the same outputs: each Expand node's W as an initializer, no function of ai.hashinfer.

    `model` is one that `read_model` accepts. Raises ModelError for an Expand whose weight vector is no constant, and
    MemoryLimitError, before anything is expanded, where the matrices take more than `limit` bytes or a file can hold.
    """
    functions = [f for f in model.functions if f.domain != DOMAIN]
    if any(n.domain == DOMAIN for f in functions for n in f.node):
        names = [(f.domain, f.name) for f in functions]
        return dense_twin(onnx.inliner.inline_selected_functions(model, names), limit)
    _check_sizes(model, min(limit, MAX_DENSE_BYTES))
    out = plain_copy(model)
    _expand_graph(out.graph, {})
    return out


def _check_sizes(model: ModelProto, limit: int) -> None:
    total = 0
    for node in (n for graph in with_inner(model.graph) for n in graph.node if n.domain == DOMAIN):
        total += 4 * prod(a.i for a in node.attribute if a.name in ("rows", "cols"))
        if total > limit:
            text = f"the dense matrices up to here take {total} bytes; at most {limit} are allowed"
            raise MemoryLimitError(at_node(node.op_type, node.name, text))


def _expand_graph(graph: GraphProto, outer: dict[str, np.ndarray]) -> None:
    constants = outer | {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.domain == DOMAIN:
            graph.initializer.append(numpy_helper.from_array(_expanded(node, constants), node.output[0]))
            continue
        value = _small_constant(node, constants)
        if value is not None:
            constants[node.output[0]] = value
        for inner in subgraphs(node):
            _expand_graph(inner, constants)
        nodes.append(node)
    _keep_used(graph, nodes)


def _small_constant(node: NodeProto, constants: dict[str, np.ndarray]) -> np.ndarray | None:
    """The value of a node that makes a weight vector of a stored one: Cast, DequantizeLinear, Identity, Constant."""
    used = [name for name in node.input if name]
    if node.domain not in DEFAULT_DOMAINS or not constants.keys() >= set(used):
        return None
    ins = [constants[name] for name in used]
    attrs = attributes_of(node)
    if node.op_type == "Constant" and "value" in attrs:
        return numpy_helper.to_array(attrs["value"])
    if node.op_type == "Identity":
        return ins[0]
    if node.op_type == "Cast" and attrs.get("to") == TensorProto.FLOAT:
        return ins[0].astype(np.float32)
    if node.op_type == "DequantizeLinear" and len(ins) > 1 and all(v.size == 1 for v in ins[1:]):
        zero = np.int32(0) if len(ins) < 3 else ins[2].astype(np.int32)
        return (ins[0].astype(np.int32) - zero).astype(np.float32) * np.asarray(ins[1], np.float32)
    return None


def _expanded(node: NodeProto, constants: dict[str, np.ndarray]) -> np.ndarray:
    w = constants.get(node.input[0])
    if w is None:
        raise ModelError(at_node(node.op_type, node.name, "its weight vector is computed by the model, no constant"))
    try:
        scheme: Scheme = BY_OP_TYPE[node.op_type](w.size, **{a.name: a.i for a in node.attribute})
        return scheme.expand(w)
    except SchemeError as error:
        raise ModelError(at_node(node.op_type, node.name, str(error))) from None


def _keep_used(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Drop the initializers and nodes that only an Expand used."""
    used = {value.name for value in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(nodes):
        if any(name in used for name in node.output):
            kept.append(node)
            used.update(node.input, captured_names(node))
    keep(graph.node, reversed(kept))
    keep(graph.initializer, [t for t in graph.initializer if t.name in used])
    del graph.value_info[:]
