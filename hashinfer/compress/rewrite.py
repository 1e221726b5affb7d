"""Weights of an ONNX model replaced by weight vectors with their Expand nodes."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hashinfer.compress.find import CONV, TRANSPOSED, Weight
from hashinfer.model.protos import keep
from hashinfer.model.write import expand_node
from hashinfer.schemes import DOMAIN, DOMAIN_VERSION, Scheme

STORED_DTYPES = ("float32", "float16", "int8")

Vector = npt.NDArray[np.float32]


class Rewritten:
    """A prepared model with hashed weights. `vectors`: for each hashed weight the name of its weight vector."""

    def __init__(
        self, model: ModelProto, weights: Sequence[Weight], schemes: Mapping[str, Scheme], stored: str
    ) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.stored = stored
        self.vectors: dict[str, str] = {}
        self._scales: dict[str, str] = {}
        graph = self.model.graph
        self._taken = {v.name for v in (*graph.initializer, *graph.input, *graph.node)}
        self._taken.update(name for node in graph.node for name in node.output)
        added: list[NodeProto] = []
        turned: set[str] = set()
        for weight in weights:
            if weight.name in schemes:
                added += self._nodes(weight, schemes[weight.name])
                if weight.form == TRANSPOSED:
                    turned.update(self._rewire(weight))
        kept = [n for n in graph.node if not (n.op_type == "Transpose" and n.output[0] in turned)]
        keep(graph.node, [*added, *kept])
        keep(graph.initializer, [t for t in graph.initializer if t.name not in self.vectors])
        keep(graph.value_info, [v for v in graph.value_info if v.name not in self.vectors and v.name not in turned])
        if added and not any(o.domain == DOMAIN for o in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))

    def set(self, values: Mapping[str, Vector]) -> None:
        """Store weight vectors, by the weight's name, and other initializers, by their own.

        int8 vectors are symmetric: scale max |w| / 127. float16 ones are clipped to what float16 holds.
        """
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for name, value in values.items():
            vector, stored = self.vectors.get(name, name), self.stored if name in self.vectors else "float32"
            if stored == "int8":
                scale = int8_scale(value)
                tensors[vector] = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
                tensors[self._scales[vector]] = np.asarray(scale, np.float32)
            elif stored == "float16":
                most = float(np.finfo(np.float16).max)
                tensors[vector] = np.clip(value, -most, most).astype(np.float16)
            else:
                tensors[vector] = np.asarray(value, np.float32)
        known = {t.name: t for t in self.model.graph.initializer}
        for name, array in tensors.items():
            tensor = known.get(name) or self.model.graph.initializer.add()
            tensor.CopyFrom(numpy_helper.from_array(array, name))

    def _fresh(self, hint: str) -> str:
        while hint in self._taken:
            hint += "_"
        self._taken.add(hint)
        return hint

    def _nodes(self, weight: Weight, scheme: Scheme) -> list[NodeProto]:
        """The nodes that make `weight`'s value, under the weight's own name, of its weight vector."""
        vector = self._fresh(f"{weight.name}_vector")
        self.vectors[weight.name] = vector
        nodes: list[NodeProto] = []
        source = vector
        if self.stored == "float16":
            source = self._fresh(f"{vector}_float")
            nodes.append(helper.make_node("Cast", [vector], [source], name=source, to=TensorProto.FLOAT))
        elif self.stored == "int8":
            source = self._fresh(f"{vector}_float")
            scale = self._scales[vector] = self._fresh(f"{vector}_scale")
            nodes.append(helper.make_node("DequantizeLinear", [vector, scale], [source], name=source))
        matrix = self._fresh(f"{weight.name}_matrix") if weight.form == CONV else weight.name
        nodes.append(expand_node(scheme, source, matrix, self._fresh(f"{weight.name}_expand")))
        if weight.form == CONV:
            turned, shape = self._fresh(f"{weight.name}_turned"), self._fresh(f"{weight.name}_shape")
            self.model.graph.initializer.append(numpy_helper.from_array(np.array(weight.shape, np.int64), shape))
            name = self._fresh(f"{weight.name}_reshape")
            nodes += [
                helper.make_node("Transpose", [matrix], [turned], name=turned, perm=[1, 0]),
                helper.make_node("Reshape", [turned, shape], [weight.name], name=name),
            ]
        return nodes

    def _rewire(self, weight: Weight) -> list[str]:
        """Where the initializer held W transposed, its uses now read W as it is. Gives what no one reads any more."""
        turned = [u.through.output[0] for u in weight.uses if u.through is not None]
        for node in self.model.graph.node:
            for at, name in enumerate(node.input):
                if name in turned:
                    node.input[at] = weight.name
                elif name == weight.name and node.op_type == "Gemm":
                    keep(node.attribute, [a for a in node.attribute if a.name != "transB"])
        return turned


def int8_scale(w: Vector) -> float:
    """What one step of an int8 weight vector stands for."""
    largest = float(np.abs(w).max(initial=0.0))
    return float(np.float32(largest / 127)) or 1.0
