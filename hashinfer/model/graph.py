"""A checked model: immutable, names resolved, functions inlined, no protobuf left in it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from hashinfer.errors import at_node

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ValueType:
    """What a graph declares of an input or output.

    dtype: None where it is no tensor, or not said. shape: None where the rank is not said; a dimension is a number, a
    name, or None. onnx_type: onnxruntime's way to write the type, "tensor(float)".
    """

    name: str
    dtype: np.dtype[Any] | None
    shape: tuple[int | str | None, ...] | None
    onnx_type: str


@dataclass(frozen=True, slots=True)
class Node:
    """One node. `inputs` and `outputs` hold "" where an optional one is left out.

    attrs: int, float, str, bytes, Array, Graph, or a tuple of one of them. opset: the version of the node's domain.
    """

    op_type: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]
    opset: int

    def explain(self, text: str) -> str:
        """`text` with the op and the node in front."""
        return at_node(self.op_type, self.name, text)


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes in an order in which every name is defined before it is used.

    captures: names of an outer graph that this one uses, in order of first use; empty for a model's main graph.
    """

    name: str
    inputs: tuple[ValueType, ...]
    outputs: tuple[ValueType, ...]
    initializers: Mapping[str, Array]
    nodes: tuple[Node, ...]
    captures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """A checked model. file_bytes: the size of the file it was read from."""

    graph: Graph
    opset: int
    ir_version: int
    file_bytes: int
    producer: str = ""
    producer_version: str = ""
    domain: str = ""
    version: int = 0
    description: str = ""
    graph_description: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    external: bool = False
    """Whether tensors lie in other files."""
    bodies: frozenset[str] = frozenset()
    """Op types of ai.hashinfer whose bodies the file carries (nothing here depends on them)."""
