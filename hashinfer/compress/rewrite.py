"""Weights of an ONNX model replaced by weight vectors with their Expand nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from hashinfer.compress.find import CONV, TRANSPOSED, Weight
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
        self._taken = _names(self.model)
        added: list[NodeProto] = []
        for weight in weights:
            if weight.name in schemes:
                added += self._nodes(weight, schemes[weight.name])
                self._rewire(weight)
        gone = set(self.vectors)
        graph = self.model.graph
        turned = {
            u.through.output[0] for w in weights if w.name in gone and w.form == TRANSPOSED for u in w.uses if u.through
        }
        nodes = [n for n in graph.node if not (n.op_type == "Transpose" and n.output[0] in turned)]
        kept = [NodeProto.FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend([*added, *kept])
        tensors = [TensorProto.FromString(t.SerializeToString()) for t in graph.initializer if t.name not in gone]
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        infos = [onnx.ValueInfoProto.FromString(v.SerializeToString()) for v in graph.value_info]
        del graph.value_info[:]
        graph.value_info.extend(v for v in infos if v.name not in gone | turned)
        if added and not any(o.domain == DOMAIN for o in self.model.opset_import):
            self.model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))

    def set(self, values: Mapping[str, Vector]) -> None:
        """Store weight vectors, by the weight's name, and other initializers, by their own.

        int8 vectors are symmetric: scale max |w| / 127. float16 ones are clipped to what float16 holds.
        """
        tensors: dict[str, npt.NDArray[np.generic]] = {}
        for name, value in values.items():
            if name not in self.vectors:
                tensors[name] = np.asarray(value, np.float32)
                continue
            vector = self.vectors[name]
            if self.stored == "int8":
                scale = int8_scale(value)
                tensors[vector] = np.clip(np.rint(value / scale), -127, 127).astype(np.int8)
                tensors[self._scales[vector]] = np.asarray(scale, np.float32)
            elif self.stored == "float16":
                most = float(np.finfo(np.float16).max)
                tensors[vector] = np.clip(value, -most, most).astype(np.float16)
            else:
                tensors[vector] = np.asarray(value, np.float32)
        index = {t.name: at for at, t in enumerate(self.model.graph.initializer)}
        for name, array in tensors.items():
            proto = numpy_helper.from_array(array, name)
            if name in index:
                self.model.graph.initializer[index[name]].CopyFrom(proto)
            else:
                self.model.graph.initializer.append(proto)

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
        if weight.form != CONV:
            return [*nodes, expand_node(scheme, source, weight.name, self._fresh(f"{weight.name}_expand"))]
        wide, turned = self._fresh(f"{weight.name}_matrix"), self._fresh(f"{weight.name}_turned")
        shape = self._fresh(f"{weight.name}_shape")
        self.model.graph.initializer.append(numpy_helper.from_array(np.array(weight.shape, np.int64), shape))
        return [
            *nodes,
            expand_node(scheme, source, wide, self._fresh(f"{weight.name}_expand")),
            helper.make_node("Transpose", [wide], [turned], name=turned, perm=[1, 0]),
            helper.make_node("Reshape", [turned, shape], [weight.name], name=self._fresh(f"{weight.name}_reshape")),
        ]

    def _rewire(self, weight: Weight) -> None:
        """Where the initializer held W transposed, its uses now read W as it is."""
        if weight.form != TRANSPOSED:
            return
        turned = {u.through.output[0] for u in weight.uses if u.through is not None}
        for node in self.model.graph.node:
            for at, name in enumerate(node.input):
                if name in turned:
                    node.input[at] = weight.name
                elif name == weight.name and node.op_type == "Gemm":
                    attributes = [a for a in node.attribute if a.name != "transB"]
                    copies = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in attributes]
                    del node.attribute[:]
                    node.attribute.extend(copies)


def int8_scale(w: Vector) -> float:
    """What one step of an int8 weight vector stands for."""
    largest = float(np.abs(w).max(initial=0.0))
    return float(np.float32(largest / 127)) or 1.0


def _names(model: ModelProto) -> set[str]:
    graph = model.graph
    found = {t.name for t in graph.initializer} | {v.name for v in graph.input}
    for node in graph.node:
        found.update(node.output)
        found.add(node.name)
    return found
