"""Nodes of standard domains held to their op's schema: the op exists, its attributes and counts are what it takes."""

from __future__ import annotations

from typing import Any

from onnx import AttributeProto, NodeProto, defs

from hashinfer.errors import ModelError, UnsupportedError, at_node

STANDARD_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")


def check_node(proto: NodeProto, name: str, domain: str, opset: int, attributes: dict[str, AttributeProto]) -> None:
    """Raise UnsupportedError for an op that version `opset` of its domain lacks, ModelError for a malformed node.

    attributes: the node's own, with references to a calling function's filled in. Other domains pass unchecked.
    """
    if domain not in STANDARD_DOMAINS:
        return
    try:
        schema = defs.get_schema(proto.op_type, opset, domain)
    except (defs.SchemaError, TypeError):
        shown = domain or "default-domain"
        raise UnsupportedError(at_node(proto.op_type, name, f"{shown} opset {opset} has no such op")) from None
    _check_count(proto, name, "inputs", len(proto.input), schema.min_input, schema.max_input)
    _check_count(proto, name, "outputs", len(proto.output), schema.min_output, schema.max_output)
    for position, given in enumerate(proto.input):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if not given and formal.option != defs.OpSchema.FormalParameterOption.Optional:
            raise ModelError(
                at_node(proto.op_type, name, f"input {position} ({formal.name}) is left out; the op needs it")
            )
    for key, attribute in attributes.items():
        expected = schema.attributes.get(key)
        if expected is None:
            known = ", ".join(schema.attributes) or "none"
            raise ModelError(at_node(proto.op_type, name, f"attribute {key!r}; the op has {known}"))
        wanted_kind: Any = expected.type
        if attribute.type != wanted_kind.value:
            found, wanted = AttributeProto.AttributeType.Name(attribute.type), wanted_kind.name
            raise ModelError(at_node(proto.op_type, name, f"attribute {key!r} is of kind {found}; expected {wanted}"))
    for key, expected in schema.attributes.items():
        if expected.required and key not in attributes:
            raise ModelError(at_node(proto.op_type, name, f"it has no attribute {key!r}, which the op needs"))


def _check_count(proto: NodeProto, name: str, what: str, found: int, least: int, most: int) -> None:
    if not least <= found <= most:
        expected = str(least) if least == most else f"{least} to {most}"
        raise ModelError(at_node(proto.op_type, name, f"{found} {what}; expected {expected}"))
