"""Writing .hnet files: an ONNX model whose Expand nodes carry their own bodies as model-local functions."""

import os

import onnx
from onnx import FunctionProto, ModelProto, NodeProto

from hashinfer.errors import ModelError, SchemeError
from hashinfer.files import atomic_write
from hashinfer.model.protos import opset_of, plain_copy, with_inner
from hashinfer.schemes import BY_OP_TYPE, DOMAIN, DOMAIN_VERSION, Scheme
from hashinfer.schemes.base import BODY_MIN_OPSET

MIN_IR_VERSION = 9


def expand_node(scheme: Scheme, weight_vector: str, output: str, name: str = "") -> NodeProto:
    """The Expand node that turns the value `weight_vector` [K] into `output` [rows, cols]."""
    node = onnx.helper.make_node(scheme.op_type, [weight_vector], [output], name=name or output, domain=DOMAIN)
    node.attribute.extend(onnx.helper.make_attribute(key, value) for key, value in scheme.attributes().items())
    return node


def expand_body(op_type: str, opset: int) -> FunctionProto:
    """The body of an Expand op for a model of default-domain version `opset`. Raises SchemeError for another op."""
    if op_type not in BY_OP_TYPE:
        raise SchemeError(f"{DOMAIN}::{op_type} is no hash scheme; expected one of {', '.join(BY_OP_TYPE)}")
    return onnx.parser.parse_function(BY_OP_TYPE[op_type].body().replace("OPSET", str(opset)))


def with_bodies(model: ModelProto) -> ModelProto:
    """A copy of `model` with the body of each Expand op it uses, replacing bodies it came with.

    Raises ModelError where the model's opset is below 18, which the bodies need.
    """
    out = plain_copy(model)
    bodies = (inner for body in (out.graph, *out.functions) for inner in with_inner(body))
    used = {n.op_type for body in bodies for n in body.node if n.domain == DOMAIN}
    opset = opset_of(out)
    if opset < BODY_MIN_OPSET:
        raise ModelError(f"the model's default-domain opset is {opset}; a hashed model needs at least {BODY_MIN_OPSET}")
    out.ir_version = max(model.ir_version, MIN_IR_VERSION)
    out.functions.extend(expand_body(op_type, opset) for op_type in sorted(used))
    if used:
        out.opset_import.append(onnx.helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
    return out


def save(model: ModelProto, path: str | os.PathLike[str]) -> None:
    """Write `model`, with the bodies of its Expand ops, to `path`: whole or not at all.

    Raises ModelError if onnx's checker or its strict shape inference refuses the result; OSError as open() would.
    """
    data = serialized(model)
    with atomic_write(path) as file:
        file.write(data)


def serialized(model: ModelProto) -> bytes:
    """The bytes of `model`, with the bodies of its Expand ops.

    Raises ModelError if onnx's checker or its strict shape inference refuses the result.
    """
    out = with_bodies(model)
    try:
        # The full check infers shapes, strictly.
        onnx.checker.check_model(out, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the model to write is not valid ONNX: {error}") from error
    data: bytes = out.SerializeToString(deterministic=True)
    return data
