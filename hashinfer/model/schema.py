"""Nodes of standard domains held to their op's schema: the op exists, its attributes and counts are what it takes.

Asked for one schema, onnx makes all, which takes 7 MB and 10 ms. So a node is first held to schemas.json.gz,
a table of what default-domain ops take; only one that does not fit there, or is not in it, is shown to onnx.
The module tests.schemas makes the table.
"""

import json
import zlib
from bisect import bisect_right
from functools import cache
from pathlib import Path
from typing import Any

from onnx import AttributeProto, NodeProto

from hashinfer.errors import ModelError, UnsupportedError, at_node

STANDARD_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")
TABLE = Path(__file__).with_name("schemas.json.gz")

Takes = tuple[int, int, int, int, str, dict[str, int], list[str]]
"""Fewest and most inputs, fewest and most outputs, a digit for each input (1: may be left out), kinds of attributes by
name, attributes that must be there."""


@cache
def table() -> tuple[int, dict[str, tuple[list[int], list[Takes]]]]:
    """(the newest opset known; for each op since which versions it takes what)"""
    content = json.loads(zlib.decompress(TABLE.read_bytes(), wbits=31))
    return content["opset"], content["ops"]


def known_to_fit(proto: NodeProto, opset: int, attributes: dict[str, AttributeProto]) -> bool:
    """Whether the table has a default-domain op at this opset, and the node is as it takes it."""
    newest, ops = table()
    since, takes = ops.get(proto.op_type, ((), ()))
    position = bisect_right(since, opset) - 1
    if position < 0 or opset > newest:
        return False
    least, most, least_out, most_out, optional, kinds, required = takes[position]
    return (
        least <= len(proto.input) <= most
        and least_out <= len(proto.output) <= most_out
        and all(given or optional[min(k, len(optional) - 1)] == "1" for k, given in enumerate(proto.input))
        and all(kinds.get(key) == attribute.type for key, attribute in attributes.items())
        and all(key in attributes for key in required)
    )


def check_node(proto: NodeProto, name: str, domain: str, opset: int, attributes: dict[str, AttributeProto]) -> None:
    """Raise UnsupportedError for an op that version `opset` of its domain lacks, ModelError for a malformed node.

    attributes: the node's own, with references to a calling function's filled in. Other domains pass unchecked.
    """
    parts = attributes.get("num_outputs")
    if not domain and proto.op_type == "Split" and parts is not None and parts.i != len(proto.output):
        # onnx's shape inference of such a node ends the process.
        text = f"num_outputs is {parts.i}, and the node names {len(proto.output)} outputs; expected equally many"
        raise ModelError(at_node(proto.op_type, name, text))
    if domain not in STANDARD_DOMAINS or (not domain and known_to_fit(proto, opset, attributes)):
        return
    from onnx import defs

    def malformed(text: str) -> ModelError:
        return ModelError(at_node(proto.op_type, name, text))

    try:
        schema = defs.get_schema(proto.op_type, opset, domain)
    except (defs.SchemaError, TypeError):
        shown = domain or "default-domain"
        raise UnsupportedError(at_node(proto.op_type, name, f"{shown} opset {opset} has no such op")) from None
    for what, found, least, most in (
        ("inputs", len(proto.input), schema.min_input, schema.max_input),
        ("outputs", len(proto.output), schema.min_output, schema.max_output),
    ):
        if not least <= found <= most:
            raise malformed(f"{found} {what}; expected {least if least == most else f'{least} to {most}'}")
    for position, given in enumerate(proto.input):
        formal = schema.inputs[min(position, len(schema.inputs) - 1)]
        if not given and formal.option != defs.OpSchema.FormalParameterOption.Optional:
            raise malformed(f"input {position} ({formal.name}) is left out; the op needs it")
    for key, attribute in attributes.items():
        expected = schema.attributes.get(key)
        if expected is None:
            raise malformed(f"attribute {key!r}; the op has {', '.join(schema.attributes) or 'none'}")
        wanted_kind: Any = expected.type
        if attribute.type != wanted_kind.value:
            kind = AttributeProto.AttributeType.Name(attribute.type)
            raise malformed(f"attribute {key!r} is of kind {kind}; expected {wanted_kind.name}")
    for key, expected in schema.attributes.items():
        if expected.required and key not in attributes:
            raise malformed(f"it has no attribute {key!r}, which the op needs")
