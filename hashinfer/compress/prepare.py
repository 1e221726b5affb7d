"""A model made ready for hashing: functions inlined, an opset that hashed weights can be in, constants lifted."""

from math import prod

import onnx
import onnx.inliner
import onnx.shape_inference
import onnx.version_converter
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from hashinfer.errors import UnsupportedError, first_line
from hashinfer.model.protos import DEFAULT_DOMAINS, captured_names, keep, opset_of, with_inner
from hashinfer.schemes import DOMAIN
from hashinfer.schemes.base import BODY_MIN_OPSET

INT8_MIN_OPSET = 19
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def prepared(model: ModelProto, int8: bool) -> ModelProto:
    """A copy of `model`, which `read_model` accepts, that computes the same and is in the form the other steps expect.

    Calls of model-local functions are inlined; the opset is at least 18, or 19 for int8 weights; tensors of Constant
    nodes are initializers; every node has a name; an initializer's Identity is the initializer; initializers are no
    inputs. Raises UnsupportedError where onnx cannot convert the model's opset.
    """
    out = ModelProto()
    out.CopyFrom(model)
    foreign = [(f.domain, f.name) for f in out.functions if f.domain != DOMAIN]
    if foreign:
        out = onnx.inliner.inline_selected_functions(out, foreign)
    out = _with_opset(out, INT8_MIN_OPSET if int8 else BODY_MIN_OPSET)
    for position, node in enumerate(out.graph.node):
        node.name = node.name or f"{node.op_type}_{position}"
    initial = {t.name for t in out.graph.initializer}
    keep(out.graph.input, [v for v in out.graph.input if v.name not in initial])
    _lift_constants(out.graph)
    _drop_identities(out.graph)
    _complete_outputs(out)
    return out


def _complete_outputs(model: ModelProto) -> None:
    """Outputs that say no shape, which onnx's checker wants, get the one that shape inference finds."""
    if all(v.type.tensor_type.HasField("shape") for v in model.graph.output if v.type.HasField("tensor_type")):
        return
    found = {v.name: v for v in onnx.shape_inference.infer_shapes(model).graph.output}
    for value in model.graph.output:
        if not value.type.tensor_type.HasField("shape"):
            value.CopyFrom(found[value.name])


def _with_opset(model: ModelProto, least: int) -> ModelProto:
    found = opset_of(model)
    if found >= least:
        return model
    try:
        return onnx.version_converter.convert_version(model, least)
    except Exception as error:
        raise UnsupportedError(
            f"the model's default-domain opset is {found}; hashed weights need {least}, and onnx cannot convert it: "
            f"{first_line(error)}"
        ) from error


def _lift_constants(graph: GraphProto) -> None:
    """Constant nodes that hold a float tensor become initializers, unless they are the graph's own output."""
    outputs = {v.name for v in graph.output}
    kept: list[NodeProto] = []
    for node in graph.node:
        plain = node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS and node.output[0] not in outputs
        value = node.attribute[0].t if plain and [a.name for a in node.attribute] == ["value"] else TensorProto()
        if value.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE):
            tensor = graph.initializer.add()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
        else:
            kept.append(node)
    keep(graph.node, kept)


def _drop_identities(graph: GraphProto) -> None:
    """Uses of Identity(initializer), as exporters write for shared weights, become uses of the initializer."""
    initial = {t.name for t in graph.initializer}
    fixed = {v.name for v in graph.output}.union(*map(captured_names, graph.node))
    rename: dict[str, str] = {}
    kept: list[NodeProto] = []
    for node in graph.node:
        for at, name in enumerate(node.input):
            node.input[at] = rename.get(name, name)
        plain = node.op_type == "Identity" and node.domain in DEFAULT_DOMAINS
        if plain and node.input[0] in initial and node.output[0] not in fixed:
            rename[node.output[0]] = node.input[0]
        else:
            kept.append(node)
    keep(graph.node, kept)


def float_numbers(graph: GraphProto) -> int:
    """How many numbers of weights a graph stores: elements of its float tensors with more than one, subgraphs' too."""
    graphs = list(with_inner(graph))
    tensors = [t for g in graphs for t in g.initializer]
    tensors += [a.t for g in graphs for node in g.node for a in node.attribute if a.HasField("t")]
    return sum(prod(t.dims) for t in tensors if t.data_type in FLOATS and prod(t.dims) > 1)
