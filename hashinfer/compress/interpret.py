"""A checked graph as a PyTorch function, with some of its weights hashed and trainable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from hashinfer.compress.find import CONV, TABLE, TRANSPOSED, Weight
from hashinfer.compress.rewrite import Vector, int8_scale
from hashinfer.compress.torch_ops import apply, gemm_epilogue, unsupported
from hashinfer.errors import UnsupportedError
from hashinfer.model.graph import Graph, Node
from hashinfer.schemes import Scheme
from hashinfer.torch.expand import expand
from hashinfer.torch.functional import conv_weight, hashed_linear, hashed_lookup, remade

MASK_VALUE = 1e3
"""Added numbers as large as this are a mask, no bias."""


def check_trainable(graph: Graph) -> None:
    """Raise UnsupportedError, with every node that has no PyTorch form, unless the whole graph has one."""
    problems = [p for p in map(unsupported, graph.nodes) if p is not None]
    if problems:
        more = f"; and {len(problems) - 1} more like it" if len(problems) > 1 else ""
        raise UnsupportedError(f"the model cannot be distilled: {problems[0]}{more} (compress without data to fit it)")


@dataclass(frozen=True, slots=True)
class _Virtual:
    """A hashed weight as it passes through a graph. turned: whether a Transpose has been passed."""

    weight: Weight
    scheme: Scheme
    w: Tensor
    turned: bool = False

    def product(self, x: Tensor, transposed: bool) -> Tensor:
        # Whether the operand, transposed where asked, is W [rows, cols] and not its transpose.
        if (self.weight.form != TRANSPOSED) ^ self.turned ^ transposed:
            return hashed_linear(x, self.w, self.scheme)
        with remade(lambda: expand(self.w, self.scheme), self.w) as dense:
            return x @ dense.t()

    def convolution(self, node: Node, x: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        with remade(lambda: conv_weight(self.w, self.scheme, self.weight.shape), self.w) as dense:
            return apply(node, [x, dense, bias])

    def lookup(self, ids: Tensor) -> Tensor:
        ids = ids.to(torch.int64)
        return hashed_lookup(torch.where(ids < 0, ids + self.scheme.rows, ids), self.w, self.scheme)


class Net(nn.Module):
    """A graph's outputs as a function of its inputs, in PyTorch.

    schemes: the weights that are hashed; they, and with `trainable` the other weights and biases, are Parameters in
    `values`, by the initializer's name. stored: the dtype that weight vectors are kept in; with float16 and int8 the
    forward pass sees them rounded, and gradients pass as if they were not (straight-through, Bengio et al., 2013).
    Raises UnsupportedError, before anything is made, for what has no PyTorch form.
    """

    def __init__(
        self,
        graph: Graph,
        weights: Sequence[Weight] = (),
        schemes: Mapping[str, Scheme] | None = None,
        stored: str = "float32",
        trainable: bool = False,
    ) -> None:
        super().__init__()
        check_trainable(graph)
        self.graph = graph
        self.stored = stored
        self.schemes = dict(schemes or {})
        self.weights = {w.name: w for w in weights if w.name in self.schemes}
        free = _parameters(graph) if trainable else set()
        self.values: dict[str, Tensor] = {}
        for name, array in graph.initializers.items():
            if name in self.schemes:
                value = torch.zeros(self.schemes[name].buckets)
            elif array.dtype.kind in "fiub":
                value = torch.from_numpy(np.array(array))
            else:
                continue
            if name in self.schemes or name in free:
                value = nn.Parameter(value)
                self.register_parameter(f"p{len(self.values)}", value)
            self.values[name] = value

    def trained(self) -> dict[str, Vector]:
        """The values of all Parameters, by the initializer's name."""
        return {n: v.detach().numpy().copy() for n, v in self.values.items() if isinstance(v, nn.Parameter)}

    @torch.no_grad()
    def load(self, values: Mapping[str, Vector]) -> None:
        """Set Parameters, by the initializer's name."""
        for name, value in values.items():
            self.values[name].copy_(torch.from_numpy(np.asarray(value)))

    def forward(self, inputs: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """The values called `wanted`. inputs: by name."""
        known: dict[str, Tensor | _Virtual] = {**self.values, **inputs}
        for name, scheme in self.schemes.items():
            known[name] = _Virtual(self.weights[name], scheme, self._rounded(self.values[name]))
        for node in self.graph.nodes:
            found = self._node(node, [known[n] if n else None for n in node.inputs])
            known.update((n, v) for n, v in zip(node.outputs, found, strict=False) if n)
        return [v for v in (known[n] for n in wanted) if isinstance(v, Tensor)]

    def _rounded(self, w: Tensor) -> Tensor:
        if self.stored == "float32":
            return w
        exact = w.detach()
        if self.stored == "float16":
            return w + (exact.half().float() - exact)
        scale = int8_scale(exact.numpy())
        return w + ((exact / scale).round().clamp(-127, 127) * scale - exact)

    @staticmethod
    def _node(node: Node, ins: list[Tensor | _Virtual | None]) -> Sequence[Tensor | _Virtual]:
        first = next((v for v in ins if isinstance(v, _Virtual)), None)
        rest = [v for v in ins if not isinstance(v, _Virtual)]
        if first is None:
            return apply(node, rest)
        if node.op_type == "Transpose":
            return [replace(first, turned=not first.turned)]
        x, bias = (*rest, None)[:2]
        assert x is not None  # noqa: S101
        if node.op_type == "Gemm":
            x = x.t() if node.attrs.get("transA", 0) else x
            product = first.product(x, bool(node.attrs.get("transB", 0)))
            return [gemm_epilogue(node, product, bias)]
        if node.op_type == "Conv" and first.weight.form == CONV:
            return first.convolution(node, x, bias)
        if node.op_type == "Gather" and first.weight.form == TABLE:
            return [first.lookup(x)]
        return [first.product(x, transposed=False)]


def _parameters(graph: Graph) -> set[str]:
    """Initializers that are weights, scales or biases: what training may change beside the hashed weights."""
    places = {
        **dict.fromkeys(("MatMul", "Add", "Mul"), (0, 1)),
        **dict.fromkeys(("Gemm", "Conv"), (1, 2)),
        **dict.fromkeys((f"{kind}Normalization" for kind in ("Batch", "Instance", "Group", "Layer")), (1, 2)),
        **dict.fromkeys(("RMSNormalization", "PRelu"), (1,)),
        "Gather": (0,),
    }
    found: set[str] = set()
    barred: set[str] = set()
    for node in graph.nodes:
        for at, name in enumerate(node.inputs):
            array = graph.initializers.get(name)
            if array is None:
                continue
            able = array.dtype == np.float32 and array.size > 1 and bool(np.isfinite(array).all())
            if able and node.op_type in ("Add", "Mul"):
                able = float(np.abs(array).max()) < MASK_VALUE and not set(np.unique(array).tolist()) <= {0.0, 1.0}
            (found if able and at in places.get(node.op_type, ()) else barred).add(name)
    return found - barred


def softmax_source(graph: Graph, output: str) -> str | None:
    """The input of the Softmax or LogSoftmax over the last axis that makes `output`, None if nothing such does."""
    for node in graph.nodes:
        if output in node.outputs and node.op_type in ("Softmax", "LogSoftmax"):
            return node.inputs[0] if node.attrs.get("axis", -1) == -1 else None
    return None
