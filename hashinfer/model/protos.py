"""What a model's protobufs hold inside each other."""

from collections.abc import Iterable, Iterator
from typing import Any

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, helper

from hashinfer.schemes import DOMAIN

DEFAULT_DOMAINS = ("", "ai.onnx")


def opset_of(model: ModelProto) -> int:
    """The model's default-domain version; 0 if it imports none."""
    return next((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), 0)


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """The values of a node's attributes, as onnx gives them."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """The graphs among a node's attributes."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else a.graphs)]


def with_inner(body: GraphProto | FunctionProto) -> Iterator[GraphProto | FunctionProto]:
    """A graph or a function, and the graphs inside it at any depth."""
    yield body
    for node in body.node:
        for inner in subgraphs(node):
            yield from with_inner(inner)


def captured_names(node: NodeProto) -> set[str]:
    """Every name that the graphs inside a node use, their own among them."""
    found: set[str] = set()
    for inner in (inner for graph in subgraphs(node) for inner in with_inner(graph)):
        found.update(v.name for v in inner.output)
        found.update(name for n in inner.node for name in n.input)
    return found


def keep(field: Any, messages: Iterable[Any]) -> None:
    """Make `messages`, which may be some of the field's own, the whole of a repeated field."""
    kept = list(messages)
    del field[:]
    field.extend(kept)


def plain_copy(model: ModelProto) -> ModelProto:
    """A copy of `model` without the functions of ai.hashinfer and the import of that domain."""
    out = ModelProto()
    out.CopyFrom(model)
    del out.functions[:], out.opset_import[:]
    out.functions.extend(f for f in model.functions if f.domain != DOMAIN)
    out.opset_import.extend(o for o in model.opset_import if o.domain != DOMAIN)
    return out
