"""Which weights of a model can be hashed, seen as which virtual matrix, and why others cannot."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, NodeProto, TensorProto, numpy_helper

from hashinfer.compress.prepare import FLOATS
from hashinfer.errors import InputError
from hashinfer.model.protos import DEFAULT_DOMAINS, attributes_of, captured_names, subgraphs

HASHED_OPS = ("MatMul", "Gemm", "Conv", "Gather")
PLAIN, TRANSPOSED, CONV, TABLE = "plain", "transposed", "conv", "table"


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One consumer of a weight. seen: the form in which it reads the weight. through: a Transpose in between."""

    node: NodeProto
    at: int
    seen: str
    through: NodeProto | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A weight that can be hashed as W [rows, cols].

    form: how the initializer holds W: "plain" as it is, "transposed" as [cols, rows], "conv" as [cols, rows...] with
    rows in (channel, kernel...) order, "table" as it is, looked up by Gather.
    """

    name: str
    form: str
    shape: tuple[int, ...]
    uses: tuple[Use, ...]

    @property
    def rows(self) -> int:
        """Inputs."""
        return self.shape[0] if self.form in (PLAIN, TABLE) else prod(self.shape[1:])

    @property
    def cols(self) -> int:
        """Outputs."""
        return self.size // self.rows

    @property
    def size(self) -> int:
        """Numbers it has."""
        return prod(self.shape)

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that use it."""
        return tuple(u.node.name for u in self.uses)

    @property
    def ops(self) -> tuple[str, ...]:
        """Their ops, each once."""
        return tuple(dict.fromkeys(u.node.op_type for u in self.uses))

    def matrix(self, stored: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """W [rows, cols] from the initializer's array."""
        if self.form in (PLAIN, TABLE):
            return stored
        return stored.reshape(self.cols, self.rows).T


@dataclass(frozen=True, slots=True)
class Passed:
    """A weight of a MatMul, Gemm, Conv or Gather that stays as it is, and why."""

    name: str
    node: str
    op: str
    shape: tuple[int, ...]
    reason: str


def find(graph: GraphProto) -> tuple[list[Weight], list[Passed]]:
    """The weights of a prepared model's graph, in the order of their first use."""
    tensors = {t.name: t for t in graph.initializer}
    captured, outputs = set[str]().union(*map(captured_names, graph.node)), {v.name for v in graph.output}
    weights: list[Weight] = []
    passed: list[Passed] = []
    for name, found in _uses(graph, tensors, captured | outputs).items():
        tensor = tensors[name]
        shape = tuple(tensor.dims)
        first = next((u for u in found if u.node.op_type in HASHED_OPS), None)
        if first is None or prod(shape) <= 1 or tensor.data_type not in FLOATS:
            continue
        reason = _obstacle(tensor, found, name in captured, name in outputs)
        if reason is None:
            weights.append(Weight(name, _form(found), shape, tuple(found)))
        else:
            passed.append(Passed(name, first.node.name, first.node.op_type, shape, reason))
    return weights, passed + _nested(graph)


def _uses(graph: GraphProto, tensors: dict[str, TensorProto], fixed: set[str]) -> dict[str, list[Use]]:
    """The uses of each matrix or larger tensor. fixed: values that are read from elsewhere than the graph's nodes."""
    consumers: dict[str, list[tuple[NodeProto, int]]] = {}
    for node in graph.node:
        for at, name in enumerate(node.input):
            consumers.setdefault(name, []).append((node, at))
    found: dict[str, list[Use]] = {}
    for node in graph.node:
        for at, name in enumerate(node.input):
            if name not in tensors or len(tensors[name].dims) < 2:
                continue
            listed = found.setdefault(name, [])
            if _turns(node, tensors[name]) and node.output[0] not in fixed:
                turned = consumers.get(node.output[0], [])
                listed += [Use(n, k, _turned(_seen(n, k, 2)), node) for n, k in turned]
            else:
                listed.append(Use(node, at, _seen(node, at, len(tensors[name].dims))))
    return found


def _turns(node: NodeProto, tensor: TensorProto) -> bool:
    plain = node.op_type == "Transpose" and node.domain in DEFAULT_DOMAINS and len(tensor.dims) == 2
    return plain and attributes_of(node).get("perm", [1, 0]) == [1, 0]


def _turned(seen: str) -> str:
    return {PLAIN: TRANSPOSED, TRANSPOSED: PLAIN}.get(seen, seen if seen.startswith("is ") else "is a turned table")


def _seen(node: NodeProto, at: int, rank: int) -> str:
    """The form in which a node reads its input number `at`, or what keeps it from being hashed, from "is " on."""
    where = f"{node.op_type} node {node.name!r}"
    if node.domain not in DEFAULT_DOMAINS or node.op_type not in HASHED_OPS:
        return f"is also an input of {where}"
    attributes = attributes_of(node)
    if node.op_type in ("MatMul", "Gemm"):
        if at != 1:
            return f"is the left operand of {where}" if at == 0 else f"is added by {where}"
        if rank != 2:
            return f"is a stack of matrices for {where}"
        return TRANSPOSED if node.op_type == "Gemm" and attributes.get("transB", 0) else PLAIN
    if node.op_type == "Conv":
        if at != 1 or rank not in (3, 4):
            return f"has {rank} dimensions as input {at} of {where}"
        return CONV
    if at != 0 or attributes.get("axis", 0) != 0 or rank != 2:
        return f"is no table of rows for {where}"
    return TABLE


def _obstacle(tensor: TensorProto, uses: Sequence[Use], captured: bool, output: bool) -> str | None:
    if tensor.data_type != TensorProto.FLOAT:
        return f"its numbers are {TensorProto.DataType.Name(tensor.data_type).lower()}; only float32 weights are hashed"
    bad = next((u.seen for u in uses if u.seen.startswith(("is ", "has "))), None)
    if bad is not None:
        return f"it {bad}"
    if captured:
        return "a subgraph uses it"
    if output:
        return "it is an output of the model"
    if len({u.seen == CONV for u in uses}) > 1:
        return "a Conv and another op share it"
    if not np.isfinite(numpy_helper.to_array(tensor)).all():
        return "it holds NaN or infinities"
    return None


def _form(uses: Sequence[Use]) -> str:
    seen = {u.seen for u in uses}
    if TABLE in seen:
        return TABLE
    if len(seen) == 1:
        return seen.pop()
    return PLAIN


def _nested(graph: GraphProto) -> list[Passed]:
    """Weights that lie inside the subgraphs of If, Loop and Scan nodes."""
    found: list[Passed] = []
    for outer in graph.node:
        for inner in subgraphs(outer):
            shapes = {t.name: tuple(t.dims) for t in inner.initializer}
            for node in inner.node:
                if node.op_type == "Constant" and node.attribute[0].HasField("t"):
                    shapes[node.output[0]] = tuple(node.attribute[0].t.dims)
                for name in node.input:
                    if node.op_type in HASHED_OPS and len(shapes.get(name, ())) >= 2:
                        reason = f"it lies inside a subgraph of {outer.op_type} node {outer.name!r}"
                        found.append(Passed(name, node.name, node.op_type, shapes[name], reason))
            found += _nested(inner)
    return found


def chosen(weights: Sequence[Weight], passed: Sequence[Passed], patterns: Sequence[str]) -> list[Weight]:
    """The weights whose own name, or a node's that uses them, matches one of the globs; all of them without globs.

    Raises InputError for a glob that matches nothing that can be hashed.
    """
    if not patterns:
        return list(weights)
    out: dict[str, Weight] = {}
    for pattern in patterns:
        matched = [w for w in weights if any(fnmatchcase(n, pattern) for n in (w.name, *w.nodes))]
        if not matched:
            refused = next((p for p in passed if fnmatchcase(p.name, pattern) or fnmatchcase(p.node, pattern)), None)
            if refused is not None:
                raise InputError(f"--layers {pattern!r}: {refused.name!r} cannot be hashed: {refused.reason}")
            names = ", ".join(dict.fromkeys(repr(n) for w in weights for n in (w.name, *w.nodes) if n)) or "none"
            raise InputError(f"--layers {pattern!r} matches no weight or node; there are {names}")
        out |= {w.name: w for w in matched}
    return [w for w in weights if w.name in out]
