"""Graph to program: constants folded, Expand nodes fused with their consumers, and those with what follows them:
a product with a bias and an activation, a lookup with the sum or mean of its bags.

An Expand whose consumer is a MatMul, Gemm, Gather (axis 0) or Conv vanishes into it. Views of W (a transpose, a
reshape to Conv's weight shape) are looked through. Where something else uses W, it is materialised for that use alone.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np

from hashinfer.errors import HashinferError, ModelError, SchemeError, UnsupportedError
from hashinfer.model.graph import Graph, Node
from hashinfer.model.schema import STANDARD_DOMAINS
from hashinfer.ops.base import Array, Call, Op
from hashinfer.ops.expand import ExpandOp
from hashinfer.ops.hashed import HashedConv, HashedExpand, HashedLookup, HashedProduct
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.ops.product import Conv, Epilogue, Gemm, MatMul
from hashinfer.ops.registry import REGISTRY
from hashinfer.plan.control import is_control
from hashinfer.plan.limits import Limits
from hashinfer.plan.program import Program, Step, evaluate
from hashinfer.schemes import BY_OP_TYPE, DOMAIN, Dyadic, Scheme

FOLD_BYTES = 2**24
"""Constants made by folding may take this much, and as much again as the file's own initializers."""


@dataclass(frozen=True, slots=True)
class View:
    """A value that is W seen some way: as it is, transposed, or in Conv's weight shape [O, I/group, kh, kw]."""

    matrix: HashedMatrix
    node: str
    transposed: bool = False
    conv_shape: tuple[int, ...] | None = None


def fuse(graph: Graph) -> Program:
    """The program of a graph. Raises ModelError or UnsupportedError, naming the node, before any input is seen."""
    return _Fuser(graph).program()


def _scheme_class(node: Node) -> type[Scheme]:
    """The scheme of an Expand node. Raises ModelError unless the node has all of its attributes and no other."""
    cls = BY_OP_TYPE[node.op_type]
    expected = ("seed", "rows", "cols", cls.parameter)
    if set(node.attrs) != set(expected):
        found = ", ".join(sorted(node.attrs)) or "none"
        raise ModelError(node.explain(f"attributes {found}; expected {', '.join(expected)}"))
    return cls


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.constants: dict[str, Array] = dict(graph.initializers)
        self.views: dict[str, View] = {}
        self.steps: list[Step] = []
        self.producer: dict[str, Node] = {name: n for n in graph.nodes for name in n.outputs if name}
        self.made: set[str] = set()
        """Views that have been materialised."""
        self.bases: dict[int, str] = {}
        """The value that holds a matrix's W, by the matrix's id, once something needed it."""
        self.names = {*graph.initializers, *graph.captures, *self.producer, *(v.name for v in graph.inputs)}
        self.fold_budget = FOLD_BYTES + sum(a.nbytes for a in graph.initializers.values())
        self.expand_sources = {n.inputs[0] for n in graph.nodes if n.domain == DOMAIN and n.inputs}

    def program(self) -> Program:
        for node in self.graph.nodes:
            try:
                self._add(node)
            except (ModelError, SchemeError):
                raise
            except HashinferError as error:
                raise ModelError(str(error)) from None
        self._absorb_followers()
        self._drop_unused()
        used = self._use_counts()
        return Program(
            self.graph.inputs,
            tuple(v.name for v in self.graph.outputs),
            self.graph.outputs,
            MappingProxyType({k: np.asarray(v, order="C") for k, v in self.constants.items() if k in used}),
            tuple(self.steps),
            self.graph.captures,
        )

    def _fresh(self, hint: str) -> str:
        """A value name that the graph does not have: node names need not be unique, value names must be."""
        while hint in self.names:
            hint += "'"
        self.names.add(hint)
        return hint

    def _add(self, node: Node) -> None:
        if node.domain == DOMAIN:
            self._add_expand(node)
            return
        if node.domain not in STANDARD_DOMAINS:
            raise UnsupportedError(node.explain(f"no op of domain {node.domain!r} is known; expected a standard op"))
        if not self._look_through(node) and not self._add_hashed(node):
            self._add_plain(node)

    def _add_plain(self, node: Node) -> None:
        """A step for a node that is no part of another's, or constants in its place."""
        inner = (name for a in node.attrs.values() if isinstance(a, Graph) for name in a.captures)
        self._materialise(*node.inputs, *inner)
        step = _step(node, REGISTRY.get(node.op_type) if node.domain == "" else None)
        step.subgraphs = {k: fuse(v) for k, v in node.attrs.items() if isinstance(v, Graph)}
        if step.op is None and not is_control(step):
            try:
                _ = step.reference
            except UnsupportedError as error:
                raise UnsupportedError(step.explain(error)) from None
        if not self._fold(step):
            self.steps.append(step)

    def _add_expand(self, node: Node) -> None:
        if len(node.inputs) != 1 or len(node.outputs) != 1 or not (node.inputs[0] and node.outputs[0]):
            raise ModelError(node.explain("expected one input, the weight vector, and one output"))
        stored = self._stored_weights(node.inputs[0])
        if stored is None:
            self._materialise(*node.inputs)
            self.steps.append(_step(node, ExpandOp(_scheme_class(node), node.attrs)))
            return
        w, scale = stored
        if w.ndim != 1:
            raise ModelError(node.explain(f"the weight vector has shape {list(w.shape)}; expected rank 1"))
        try:
            scheme = _scheme_class(node)(w.size, **node.attrs)
        except SchemeError as error:
            raise ModelError(node.explain(str(error))) from None
        if w.dtype not in (np.float32, np.float16, np.int8) or (w.dtype == np.float16 and scale is None):
            self.steps.append(_step(node, ExpandOp(type(scheme), node.attrs)))
            return
        self.views[node.outputs[0]] = View(HashedMatrix(scheme, w, 1.0 if scale is None else scale), node.name)

    def _stored_weights(self, name: str) -> tuple[Array, float | None] | None:
        """The weight vector in its stored form and the scale on it: None if it is no constant.

        The scale is None where the stored dtype is the value's own dtype.
        """
        if name in self.constants:
            return self.constants[name], None
        node = self.producer.get(name)
        if node is None or node.domain:
            return None
        sources = [self.constants.get(i) if i else None for i in node.inputs]
        if node.op_type == "Identity":
            return self._stored_weights(node.inputs[0])
        if not sources or sources[0] is None:
            return None
        if node.op_type == "Cast" and node.attrs.get("to") == 1 and sources[0].dtype == np.float16:
            return sources[0], 1.0
        if node.op_type == "DequantizeLinear" and sources[0].dtype == np.int8 and len(sources) > 1:
            scale, zero = sources[1], sources[2] if len(sources) > 2 else np.zeros(1, np.int8)
            if scale is None or scale.size != 1 or scale.dtype != np.float32:
                return None
            if zero is None or zero.size != 1 or zero.dtype != np.int8:
                return None
            if zero.ravel()[0] == 0:
                return sources[0], float(scale.ravel()[0])
            shifted = sources[0].astype(np.int32) - int(zero.ravel()[0])
            return shifted.astype(np.float32) * scale.ravel()[0], None
        return None

    def _look_through(self, node: Node) -> bool:
        """Whether the node only changes how a W is seen; its output is then a view as well."""
        view = self.views.get(node.inputs[0]) if node.inputs else None
        if view is None or view.conv_shape is not None:
            return False
        if node.op_type == "Transpose" and tuple(node.attrs.get("perm", (1, 0))) == (1, 0):
            view = replace(view, transposed=not view.transposed)
        elif node.op_type == "Reshape" and view.transposed:
            view = replace(view, conv_shape=self._conv_weight_shape(view, self.constants.get(node.inputs[1])))
            if view.conv_shape is None:
                return False
        elif node.op_type != "Identity":
            return False
        self.views[node.outputs[0]] = view
        return True

    @staticmethod
    def _conv_weight_shape(view: View, target: Array | None) -> tuple[int, ...] | None:
        """[O, I/group, kh, kw] (or one spatial dimension) if `target` is such a shape of the transposed W."""
        if target is None or target.ndim != 1 or target.size not in (3, 4):
            return None
        scheme = view.matrix.scheme
        shape = [int(d) for d in target]
        if shape.count(-1) == 1:
            known = prod(d for d in shape if d != -1)
            shape[shape.index(-1)] = scheme.virtual_size // known if known > 0 else -1
        fits = shape[0] == scheme.cols and prod(shape[1:]) == scheme.rows
        return tuple(shape) if fits and min(shape) > 0 else None

    def _add_hashed(self, node: Node) -> bool:
        """Whether the node and the W it uses became one hashed step."""
        position = {"MatMul": 1, "Gemm": 1, "Gather": 0, "Conv": 1}.get(node.op_type, len(node.inputs))
        if position >= len(node.inputs) or node.inputs[position] not in self.views:
            return False
        view = self.views[node.inputs[position]]
        fused = self._hashed_op(node, view)
        if fused is None:
            return False
        op, inputs = fused
        self._materialise(*inputs)
        label, nodes = f"{view.matrix.scheme.op_type}+{node.op_type}", (view.node, node.name)
        call = Call(node.attrs, node.opset, 1)
        self.steps.append(Step(label, nodes, node.op_type, "", op, call, inputs, node.outputs))
        return True

    def _hashed_op(self, node: Node, view: View) -> tuple[Op, tuple[str, ...]] | None:
        """The op that does what `node` does to a W seen so, and its inputs; None if there is none."""
        if node.op_type == "Conv":
            if view.conv_shape is None:
                return None
            bias = node.inputs[2:3] if len(node.inputs) > 2 and node.inputs[2] else ()
            return HashedConv(view.matrix, view.conv_shape), (node.inputs[0], "", *bias)
        if view.conv_shape is not None:
            return None
        if node.op_type == "MatMul":
            return HashedProduct(view.matrix, view.transposed), node.inputs[:1]
        if node.op_type == "Gemm":
            return self._hashed_gemm(node, view)
        if view.transposed or node.attrs.get("axis", 0) != 0 or isinstance(view.matrix.scheme, Dyadic):
            return None
        return HashedLookup(view.matrix), node.inputs[1:]

    def _hashed_gemm(self, node: Node, view: View) -> tuple[Op, tuple[str, ...]]:
        x, bias = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else ""
        if node.attrs.get("transA", 0):
            x = self._helper(node, "Transpose", (x,), {"perm": (1, 0)})
        beta = float(node.attrs.get("beta", 1.0))
        if bias and beta != 1.0:
            factor = self._fresh(f"{node.name}/beta")
            self.constants[factor] = np.array(beta, np.float32)
            bias = self._helper(node, "Mul", (bias, factor), {})
        transposed = view.transposed != bool(node.attrs.get("transB", 0))
        op = HashedProduct(view.matrix, transposed, Epilogue(alpha=float(node.attrs.get("alpha", 1.0))))
        return op, (x, bias) if bias else (x,)

    def _helper(self, node: Node, op_type: str, inputs: tuple[str, ...], attrs: Mapping[str, Any]) -> str:
        """A step of a standard op in front of `node`; returns its output's name."""
        name = self._fresh(f"{node.name}/{op_type}")
        self._add_plain(Node(op_type, "", name, inputs, (name,), attrs, max(node.opset, 13)))
        return name

    def _materialise(self, *names: str) -> None:
        """W itself, as it is seen, for those of the values that are views: something cannot be fused with them."""
        for name in names:
            if name in self.views and name not in self.made:
                self.made.add(name)
                self._add_view(name, self.views[name])

    def _add_view(self, name: str, view: View) -> None:
        scheme = view.matrix.scheme
        current = self.bases.get(id(view.matrix))
        if current is None:
            current = self.bases[id(view.matrix)] = self._fresh(f"{view.node}/W")
            expand, call = HashedExpand(view.matrix), Call({}, 1)
            self.steps.append(Step(scheme.op_type, (view.node,), "Expand", DOMAIN, expand, call, (), (current,)))
        shape: tuple[int, ...] = scheme.rows, scheme.cols
        if view.transposed:
            base, current = current, self._fresh(f"{name}/T")
            self.steps.append(_standard("Transpose", view.node, (base,), current, {"perm": (1, 0)}))
            shape = view.conv_shape or shape[::-1]
        target = self._fresh(f"{name}/shape")
        self.constants[target] = np.array(shape, np.int64)
        self.steps.append(_standard("Reshape", view.node, (current, target), name, {}))

    def _fold(self, step: Step) -> bool:
        """Whether the step's outputs became constants: all of its inputs are, and the outputs are not much larger."""
        if step.op is None or step.subgraphs or not all(i == "" or i in self.constants for i in step.inputs):
            return False
        if step.op_type in ("Cast", "DequantizeLinear") and any(o in self.expand_sources for o in step.outputs):
            return False
        ins = [self.constants[i] if i else None for i in step.inputs]
        room = min(self.fold_budget, 4 * sum(x.nbytes for x in ins if x is not None) + 65536)
        try:
            values = evaluate(step, ins, Limits(room))
        except HashinferError:
            # What cannot be folded is tried again when the plan is made, where its error belongs.
            return False
        if not all(isinstance(v, np.ndarray) for v in values):
            return False
        self.constants.update(step.named(values))
        self.fold_budget -= sum(v.nbytes for v in values)
        return True

    def _use_counts(self) -> Counter[str]:
        counts = Counter(name for step in self.steps for name in step.uses())
        counts.update(v.name for v in self.graph.outputs)
        return counts

    def _absorb_followers(self) -> None:
        """Take a bias Add and an activation behind a product into it, where nothing else uses the value between."""
        counts = self._use_counts()
        by_output = {name: k for k, step in enumerate(self.steps) for name in step.outputs}
        kept: list[Step | None] = list(self.steps)
        for k, step in enumerate(self.steps):
            if len(step.outputs) != 1:
                continue
            for name in [n for n in step.inputs if n in by_output and counts[n] == 1]:
                at = by_output[name]
                before = kept[at]
                joined = None if before is None else self._joined(before, step, name)
                if joined is not None:
                    kept[at], kept[k] = None, joined
                    by_output[step.outputs[0]] = k
                    break
        self.steps = [step for step in kept if step is not None]

    def _joined(self, product: Step, follower: Step, value: str) -> Step | None:
        """`product` with `follower` in it, or None if they do not go together."""
        op = product.op
        if isinstance(op, HashedLookup):
            return self._with_bag(product, op, follower)
        if follower.domain or not isinstance(op, HashedProduct | HashedConv | MatMul | Gemm | Conv):
            return None
        if op.epilogue.activation != "none":
            return None
        if not isinstance(op, HashedProduct | HashedConv) and not self._has_kernels(product):
            return None
        if follower.op_type == "Add":
            inputs = self._with_bias(product, follower, value)
            return None if inputs is None else replace(_followed(product, follower, op), inputs=inputs)
        epilogue = _activation(follower, op.epilogue, self.constants)
        if epilogue is None:
            return None
        return _followed(product, follower, replace(op, epilogue=epilogue))

    def _with_bag(self, lookup: Step, op: HashedLookup, follower: Step) -> Step | None:
        """A lookup with the sum or mean over the last axis of its ids in it."""
        bag = {"ReduceSum": "sum", "ReduceMean": "mean"}.get(follower.op_type)
        ids = next((v for v in self.graph.inputs if v.name == lookup.inputs[0]), None)
        if follower.domain or bag is None or op.bag or ids is None or not ids.shape:
            return None
        axes = follower.call.get("axes", None)
        if axes is None and len(follower.inputs) > 1 and follower.inputs[1] in self.constants:
            axes = self.constants[follower.inputs[1]].ravel().tolist()
        if axes is None or len(axes) != 1 or axes[0] not in (-2, len(ids.shape) - 1):
            return None
        return _followed(lookup, follower, HashedLookup(op.matrix, bag, bool(follower.call.get("keepdims", 1))))

    def _has_kernels(self, product: Step) -> bool:
        """Whether kernels, which alone know an epilogue, are sure to run a dense product."""
        w = self.constants.get(product.inputs[1]) if len(product.inputs) > 1 else None
        if w is None or w.dtype != np.float32 or w.ndim < 2:
            return False
        if isinstance(product.op, Gemm):
            return not product.call.get("transA", 0) and product.call.get("beta", 1.0) == 1.0
        return not isinstance(product.op, Conv) or w.ndim in (3, 4)

    def _with_bias(self, product: Step, add: Step, value: str) -> tuple[str, ...] | None:
        """The product's inputs with the other operand of `add` as its bias, if it is constant, one for each output."""
        other = add.inputs[1] if add.inputs[0] == value else add.inputs[0]
        bias = self.constants.get(other)
        if bias is None or bias.dtype != np.float32 or other == value:
            return None
        op, inputs = product.op, product.inputs
        convolution, place, spatial = isinstance(op, HashedConv | Conv), 2, 0
        if isinstance(op, HashedProduct):
            outputs, place = op.outputs, 1
        else:
            shape = op.weight_shape if isinstance(op, HashedConv) else self.constants[inputs[1]].shape
            transposed = isinstance(op, Gemm) and product.call.get("transB", 0)
            outputs = shape[0] if convolution or transposed else shape[-1]
            spatial = len(shape) - 2 if convolution else 0
        rank = spatial + (2 if convolution or isinstance(op, Gemm) else 1)
        one_each = bias.shape[-spatial - 1 :] == (outputs, *(1,) * spatial) and bias.ndim <= rank
        if len(inputs) > place or bias.size != outputs or not one_each:
            return None
        name = self._fresh(f"{other}/bias")
        self.constants[name] = bias.reshape(-1)
        return (*inputs, *[""] * (place - len(inputs)), name)

    def _drop_unused(self) -> None:
        live = {v.name for v in self.graph.outputs}
        self._materialise(*(v.name for v in self.graph.outputs))
        kept: list[Step] = []
        for step in reversed(self.steps):
            if not any(name in live for name in step.outputs):
                continue
            kept.append(step)
            live.update(step.uses())
        self.steps = kept[::-1]


def _step(node: Node, op: Op | None) -> Step:
    attrs = MappingProxyType({k: v for k, v in node.attrs.items() if not isinstance(v, Graph)})
    call = Call(attrs, node.opset, len(node.outputs))
    return Step(node.op_type, (node.name,), node.op_type, node.domain, op, call, node.inputs, node.outputs)


def _standard(op_type: str, node: str, inputs: tuple[str, ...], output: str, attrs: Mapping[str, Any]) -> Step:
    return _step(Node(op_type, "", node, inputs, (output,), attrs, 13), REGISTRY[op_type])


def _followed(step: Step, follower: Step, op: Op) -> Step:
    """`step` with `follower` in it; `op` does what both do."""
    label, nodes = f"{step.label}+{follower.op_type}", (*step.nodes, *follower.nodes)
    return replace(step, label=label, nodes=nodes, op=op, outputs=follower.outputs)


def _activation(step: Step, before: Epilogue, constants: Mapping[str, Array]) -> Epilogue | None:
    """`before` with the activation that `step` computes, or None if it is none that kernels know."""
    if step.op_type in ("Relu", "Sigmoid", "Tanh"):
        return replace(before, activation=step.op_type.lower())
    if step.op_type == "LeakyRelu":
        return replace(before, activation="leaky_relu", a=float(step.call.get("alpha", 0.01)))
    if step.op_type == "Clip" and step.call.opset >= 11:
        limits = [-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max)]
        for position, name in enumerate(step.inputs[1:3]):
            if not name:
                continue
            value = constants.get(name)
            if value is None or value.size != 1 or value.dtype != np.float32:
                return None
            limits[position] = float(value.ravel()[0])
        return replace(before, activation="clip", a=limits[0], b=limits[1])
    return None
