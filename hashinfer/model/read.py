"""Reading a model: bytes in, a checked graph out, in time and memory bounded by the file's size and the limits here.

onnx's classes parse the protobuf; its C++ checker and shape inference are not used (a 2 KB file can hang them). What is
checked here, kernels rely on: hash parameters (hashinfer.schemes), tensor sizes, names defined once and before use.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from hashinfer.errors import MemoryLimitError, ModelError, UnsupportedError, at_node
from hashinfer.model.graph import Array, Graph, Model, Node, ValueType
from hashinfer.model.protos import DEFAULT_DOMAINS, subgraphs
from hashinfer.model.schema import check_node
from hashinfer.model.tensors import numpy_dtype, to_array
from hashinfer.model.text import check_text
from hashinfer.schemes import BY_OP_TYPE, DOMAIN, DOMAIN_VERSION
from hashinfer.schemes.base import BODY_MIN_OPSET

MAX_FILE_BYTES = 2**31 - 1
PIECE_BYTES = 2**24
MAX_NODES = 50_000
MAX_DEPTH = 24
LONGEST_NAME, LONGEST_PREFIX = 200, 200
"""Characters of names inside functions and subgraphs that are kept, and of the names put in front of them."""
MIN_IR_VERSION, MIN_OPSET = 3, 7

ModelSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO


def read_model(source: ModelSource, max_bytes: int | None = None) -> Model:
    """Read a model from a path, bytes, or a binary file object.

    max_bytes: what the file, and tensors in other files, may take in memory together; by default a file's own limit.

    Raises ModelError (a ValueError) for anything that is no well-formed model, UnsupportedError where it is one but
    asks for what this engine lacks, MemoryLimitError for what is larger than max_bytes, before it is read; OSError as
    open() would.
    """
    data, folder = _read_bytes(source, max_bytes)
    proto = ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, RecursionError, ValueError) as error:
        raise ModelError(f"not an ONNX model: {len(data)} bytes do not parse as one ({error})") from None
    size = len(data)
    del data
    if not proto.HasField("graph"):
        raise ModelError(f"not an ONNX model: {size} bytes that hold no graph")
    check_text(proto)
    opsets = _check_versions(proto)
    bodies = frozenset(f.name for f in proto.functions if f.domain == DOMAIN)
    room = None if max_bytes is None else max_bytes - size
    builder = _Builder([f for f in proto.functions if f.domain != DOMAIN], folder, room)
    graph = builder.main_graph(proto.graph, opsets)
    return Model(
        graph=graph,
        opset=opsets.get("", 0),
        ir_version=proto.ir_version,
        file_bytes=size,
        producer=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        version=proto.model_version,
        description=proto.doc_string,
        graph_description=proto.graph.doc_string,
        metadata=MappingProxyType({p.key: p.value for p in proto.metadata_props}),
        external=builder.external,
        bodies=bodies,
    )


def _read_bytes(source: ModelSource, max_bytes: int | None) -> tuple[bytes, Path | None]:
    what, folder = "the model", None
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        found = path.stat()
        if path.is_dir():
            raise ModelError(f"{path} is a folder; expected a model file")
        if found.st_size > MAX_FILE_BYTES:
            raise ModelError(f"{path} has {found.st_size} bytes; an ONNX file has at most {MAX_FILE_BYTES}")
        if max_bytes is not None and found.st_size > max_bytes:
            raise MemoryLimitError(f"{path} has {found.st_size} bytes; at most {max_bytes} are allowed")
        with path.open("rb") as file:
            data = _read_all(file)
        what, folder = str(path), path.parent
    else:
        data = read_stream(source)
    if not data:
        raise ModelError(f"{what} is empty; expected an ONNX model")
    if len(data) > MAX_FILE_BYTES:
        raise ModelError(f"{what} has more than {MAX_FILE_BYTES} bytes")
    return data, folder


def read_stream(source: object) -> bytes:
    """What a binary file object holds, up to one byte more than a model may have. Raises ModelError if it is none."""
    if not hasattr(source, "read"):
        raise ModelError(f"the model is a {type(source).__name__}; expected a path, bytes or a binary file object")
    return _read_all(source)


def _read_all(file: Any) -> bytes:
    """What is left in a file, piece by piece: read(n) makes room for n bytes however few there are."""
    pieces, size = [], 0
    while size <= MAX_FILE_BYTES:
        piece = file.read(PIECE_BYTES)
        if not isinstance(piece, bytes):
            raise ModelError(
                f"the model's file object gives {type(piece).__name__}; expected bytes (open it with 'rb')"
            )
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _check_versions(proto: ModelProto) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = _domain(entry.domain)
        if opsets.get(domain, entry.version) != entry.version:
            found = f"versions {opsets[domain]} and {entry.version}"
            raise ModelError(f"the model imports domain {domain!r} twice, in {found}")
        opsets[domain] = entry.version
    if proto.ir_version < MIN_IR_VERSION:
        raise UnsupportedError(f"the model has IR version {proto.ir_version}; expected at least {MIN_IR_VERSION}")
    if not opsets:
        raise ModelError("the model imports no version of any domain; expected an opset_import")
    _check_domains(opsets, "the model")
    return opsets


def _domain(name: str) -> str:
    return "" if name in DEFAULT_DOMAINS else name


def _check_domains(opsets: Mapping[str, int], where: str) -> None:
    newest = onnx.defs.onnx_opset_version()
    if not MIN_OPSET <= opsets.get("", newest) <= newest:
        raise UnsupportedError(f"{where}'s default-domain opset is {opsets['']}; expected {MIN_OPSET} to {newest}")
    version = opsets.get(DOMAIN)
    if version is None:
        return
    if version != DOMAIN_VERSION:
        raise UnsupportedError(
            f"{where} uses version {version} of {DOMAIN}; this engine reads version {DOMAIN_VERSION}"
        )
    if "" not in opsets:
        raise ModelError(
            f"{where} uses {DOMAIN} and imports no version of the default domain; expected {BODY_MIN_OPSET}"
        )
    if opsets[""] < BODY_MIN_OPSET:
        raise UnsupportedError(
            f"{where} uses {DOMAIN} with default-domain opset {opsets['']}; expected at least {BODY_MIN_OPSET}"
        )


_Key = tuple[str, str, str]
"""What a function is called by: domain, op type, overload."""


@dataclass(slots=True)
class _Scope:
    """One graph or function body under construction: what its nodes go by, and its names.

    attributes: what the call of the function gives. rename: model-wide names of what is defined here; captured: names
    that an outer scope defines.
    """

    prefix: str
    opsets: Mapping[str, int]
    attributes: Mapping[str, AttributeProto]
    outer: _Scope | None = None
    rename: dict[str, str] = field(default_factory=dict)
    captured: dict[str, None] = field(default_factory=dict)

    def resolve(self, name: str) -> str | None:
        """The model-wide name of a value used here, or None if nothing defines it."""
        if name in self.rename:
            return self.rename[name]
        if self.outer is None:
            return None
        found = self.outer.resolve(name)
        if found is not None:
            self.captured[found] = None
        return found


class _Builder:
    def __init__(self, functions: Sequence[FunctionProto], folder: Path | None, room: int | None) -> None:
        self.folder = folder
        self.room = room
        """Bytes that tensors in other files may still take; None where nobody set a limit."""
        self.functions: dict[_Key, FunctionProto] = {}
        for f in functions:
            key = f.domain, f.name, f.overload
            if key in self.functions:
                raise ModelError(f"the function {f.domain}::{f.name} is defined twice")
            self.functions[key] = f
        self.external = False
        self.prefixes = 0
        self.taken: set[str] = set()
        """Names of the main graph, which stay as they are, and those made for the inside of functions and subgraphs."""
        self.sizes: dict[_Key, tuple[int, int]] = {}
        """Of each function, once known: the nodes it becomes, and how deep functions and subgraphs nest in it."""
        self.arrays: dict[int, tuple[TensorProto, Array]] = {}
        """Tensors read so far, by the id of their protobuf: a function's tensor is read once, not at every call."""

    def main_graph(self, proto: GraphProto, opsets: Mapping[str, int]) -> Graph:
        total = sum(self._expanded_size(n, ())[0] for n in proto.node)
        if total > MAX_NODES:
            raise ModelError(
                f"the model has {total} nodes after its functions are expanded; expected at most {MAX_NODES}"
            )
        self.taken.update(v.name for v in proto.input)
        self.taken.update(t.name for t in proto.initializer)
        self.taken.update(made for n in proto.node for made in n.output)
        return self._graph(proto, _Scope("", opsets, {}))

    def _expanded_size(self, node: NodeProto, calling: tuple[_Key, ...]) -> tuple[int, int]:
        """Nodes that `node` becomes, at most MAX_NODES + 1, and how deep they nest: before anything is expanded."""
        key = node.domain, node.op_type, node.overload
        inner = [n for graph in subgraphs(node) for n in graph.node]
        inside = self._total_size(inner, (*calling, key)) if inner else (0, 0)
        if key not in self.functions:
            return min(MAX_NODES + 1, 1 + inside[0]), inside[1]
        if key in calling:
            raise ModelError(f"the function {node.domain}::{node.op_type} calls itself")
        if key not in self.sizes:
            self.sizes[key] = self._total_size(self.functions[key].node, (*calling, key))
        size, depth = self.sizes[key]
        if depth + len(calling) > MAX_DEPTH:
            raise _too_deep(node.name)
        return min(MAX_NODES + 1, size + inside[0]), max(depth, inside[1])

    def _total_size(self, nodes: Iterable[NodeProto], calling: tuple[_Key, ...]) -> tuple[int, int]:
        """The sum of what nodes of one body or subgraph become; the depth is one more than that of the deepest."""
        total, depth = 0, 0
        for node in nodes:
            if len(calling) > MAX_DEPTH:
                raise _too_deep(node.name)
            size, inner = self._expanded_size(node, calling)
            total, depth = min(MAX_NODES + 1, total + size), max(depth, inner)
        return total, depth + 1

    def _prefix(self, node: str) -> str:
        """What is put in front of the names inside a node's function or subgraph."""
        self.prefixes += 1
        return f"{node[:LONGEST_PREFIX]}#{self.prefixes}/"

    def _graph(self, proto: GraphProto, scope: _Scope) -> Graph:
        where = f"graph {proto.name!r}"
        if proto.sparse_initializer:
            raise UnsupportedError(f"{where} has sparse initializers, which this engine does not read")
        initializers: dict[str, Array] = {}
        for tensor in proto.initializer:
            name = self._define(scope, tensor.name, f"initializer {tensor.name!r}")
            initializers[name] = self._array(tensor, f"initializer {tensor.name!r}")
        inputs = [
            _value_type(value, self._define(scope, value.name, f"input {value.name!r} of {where}"))
            for value in proto.input
            if value.name not in scope.rename
        ]
        nodes = self._nodes(proto.node, scope)
        outputs = []
        for value in proto.output:
            found = scope.resolve(value.name)
            if found is None:
                raise ModelError(f"output {value.name!r} of {where} is produced by no node, input or initializer")
            outputs.append(_value_type(value, found))
        return Graph(
            proto.name,
            tuple(inputs),
            tuple(outputs),
            MappingProxyType(initializers),
            tuple(nodes),
            tuple(scope.captured),
        )

    def _array(self, tensor: TensorProto, where: str) -> Array:
        known = self.arrays.get(id(tensor))
        if known is not None:
            return known[1]
        external = tensor.data_location == TensorProto.EXTERNAL
        array = to_array(tensor, where, self.folder, self.room)
        self.arrays[id(tensor)] = tensor, array
        self.external |= external
        if external and self.room is not None:
            self.room -= array.nbytes
        return array

    def _define(self, scope: _Scope, name: str, what: str) -> str:
        if not name:
            raise ModelError(f"{what} has no name")
        if name in scope.rename:
            raise ModelError(f"{what} is defined twice in its graph")
        unique = _inner_name(scope, name)
        if scope.prefix:
            while unique in self.taken:
                unique += "'"
            self.taken.add(unique)
        scope.rename[name] = unique
        return unique

    def _define_output(self, scope: _Scope, output: str, proto: NodeProto, node: str) -> str:
        return self._define(scope, output, at_node(proto.op_type, node, f"its output {output!r}"))

    def _nodes(self, protos: Sequence[NodeProto], scope: _Scope) -> list[Node]:
        opsets = scope.opsets
        producers = {name: n for n in protos for name in n.output if name}
        nodes: list[Node] = []
        for position, proto in enumerate(protos):
            domain = _domain(proto.domain)
            name = _inner_name(scope, proto.name or f"{proto.op_type}_{position}")
            inputs = []
            for used in proto.input:
                found = scope.resolve(used) if used else ""
                if found is None:
                    raise ModelError(at_node(proto.op_type, name, _undefined(used, producers)))
                inputs.append(found)
            own = _attributes(proto, name, scope.attributes)
            function = self.functions.get((proto.domain, proto.op_type, proto.overload))
            if function is not None:
                nodes.extend(self._inline(function, proto, own, name, inputs, scope))
                continue
            outputs = [self._define_output(scope, made, proto, name) if made else "" for made in proto.output]
            if domain not in opsets:
                shown = repr(domain) if domain else "the default domain"
                raise ModelError(at_node(proto.op_type, name, f"the model imports no version of {shown}"))
            if domain == DOMAIN and proto.op_type not in BY_OP_TYPE:
                known = " and ".join(BY_OP_TYPE)
                raise UnsupportedError(at_node(proto.op_type, name, f"{DOMAIN} version 1 has {known}, no such op"))
            check_node(proto, name, domain, opsets[domain], own)
            node_attrs = MappingProxyType({k: self._value(a, name, scope) for k, a in own.items()})
            nodes.append(Node(proto.op_type, domain, name, tuple(inputs), tuple(outputs), node_attrs, opsets[domain]))
        return nodes

    def _inline(
        self,
        function: FunctionProto,
        call: NodeProto,
        attributes: Mapping[str, AttributeProto],
        name: str,
        inputs: Sequence[str],
        scope: _Scope,
    ) -> list[Node]:
        """The nodes of a function's body in place of a call of it, which gives `attributes`."""
        what = f"the function {function.domain}::{function.name}"
        if len(inputs) > len(function.input) or len(call.output) > len(function.output):
            given = f"{len(inputs)} inputs and {len(call.output)} outputs"
            expected = f"{what} has {len(function.input)} and {len(function.output)}"
            raise ModelError(at_node(call.op_type, name, f"{given}; {expected}"))
        opsets = {_domain(o.domain): o.version for o in function.opset_import}
        _check_domains(opsets, what)
        inner = _Scope(self._prefix(name), opsets, {a.name: a for a in function.attribute_proto} | dict(attributes))
        inner.rename.update(zip_longest(function.input, inputs, fillvalue=""))
        nodes = self._nodes(function.node, inner)
        renamed: dict[str, str] = {}
        for formal, actual in zip(function.output, call.output, strict=False):
            found = inner.resolve(formal)
            if found is None:
                raise ModelError(f"output {formal!r} of {what} is produced by no node of it")
            if actual:
                renamed[actual] = found
        for actual, found in renamed.items():
            outputs = (self._define_output(scope, actual, call, name),)
            nodes.append(Node("Identity", "", f"{name}/{actual}", (found,), outputs, MappingProxyType({}), 13))
        return nodes

    def _value(self, attribute: AttributeProto, node: str, scope: _Scope) -> Any:
        kind, where = attribute.type, f"attribute {attribute.name!r} of node {node!r}"
        if kind == AttributeProto.TENSOR:
            return self._array(attribute.t, where)
        if kind == AttributeProto.TENSORS:
            return tuple(self._array(t, where) for t in attribute.tensors)
        if kind == AttributeProto.GRAPH:
            return self._graph(attribute.g, _Scope(self._prefix(node), scope.opsets, scope.attributes, scope))
        if kind not in _PLAIN_VALUES:
            shown = AttributeProto.AttributeType.Name(kind)
            raise UnsupportedError(f"{where} is of kind {shown}, which is not read here")
        return _PLAIN_VALUES[kind](attribute)


def _attributes(proto: NodeProto, name: str, given: Mapping[str, AttributeProto]) -> dict[str, AttributeProto]:
    """The node's attributes with references to the calling function's attributes, `given`, filled in."""
    own: dict[str, AttributeProto] = {}
    for attribute in proto.attribute:
        if attribute.name in own:
            raise ModelError(at_node(proto.op_type, name, f"attribute {attribute.name!r} is given twice"))
        if not attribute.ref_attr_name:
            own[attribute.name] = attribute
        elif attribute.ref_attr_name in given:
            own[attribute.name] = given[attribute.ref_attr_name]
    return own


def _inner_name(scope: _Scope, name: str) -> str:
    """A name inside a function or subgraph with its prefix: cut, since bodies are copied at every call."""
    if not scope.prefix:
        return name
    return scope.prefix + (name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}~{len(scope.rename)}")


def _too_deep(node: str) -> ModelError:
    return ModelError(f"functions or subgraphs are nested more than {MAX_DEPTH} deep at node {node!r}")


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


_PLAIN_VALUES: dict[int, Callable[[AttributeProto], Any]] = {
    AttributeProto.FLOAT: lambda a: a.f,
    AttributeProto.INT: lambda a: a.i,
    AttributeProto.STRING: lambda a: _text(a.s),
    AttributeProto.FLOATS: lambda a: tuple(a.floats),
    AttributeProto.INTS: lambda a: tuple(a.ints),
    AttributeProto.STRINGS: lambda a: tuple(map(_text, a.strings)),
    AttributeProto.TYPE_PROTO: lambda a: a.tp.SerializeToString(),
}
"""Values of attributes that hold neither tensors nor graphs, by their kind."""


def _undefined(name: str, producers: Mapping[str, NodeProto]) -> str:
    producer = producers.get(name)
    if producer is None:
        return f"its input {name!r} is produced by no node, input or initializer"
    return f"its input {name!r} comes from the later {producer.op_type} node: a cycle, or nodes out of order"


def _value_type(value: ValueInfoProto, name: str) -> ValueType:
    which = value.type.WhichOneof("value")
    if which != "tensor_type":
        return ValueType(name, None, None, {"sequence_type": "seq", "optional_type": "optional"}.get(which or "", ""))
    tensor = value.type.tensor_type
    dtype = numpy_dtype(tensor.elem_type, f"value {value.name!r}") if tensor.elem_type else None
    shape: tuple[int | str | None, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in tensor.shape.dim)
        if any(isinstance(d, int) and d < 0 for d in shape):
            raise ModelError(f"value {value.name!r} has shape {list(shape)}; expected no dimension below 0")
    return ValueType(name, dtype, shape, f"tensor({_ORT_NAMES.get(tensor.elem_type, 'undefined')})")


_ORT_NAMES = {
    number: {"FLOAT": "float", "DOUBLE": "double"}.get(label, label.lower())
    for label, number in onnx.TensorProto.DataType.items()
}
