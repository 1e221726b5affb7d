"""The nets that are compared: built from seeds, the same bytes at every run.

A variant of a net is a scheme and a compression factor c. Each hashed matrix gets K = rows cols / c numbers; biases are
stored beside them. Weights are normal with variance 2 / rows (He et al., 2015), so that about half of the hidden units
are zero after a ReLU, as in trained nets; 784-1000-10 uses the trained models of this repository where there is one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from hashinfer.model.write import expand_node, with_bodies
from hashinfer.schemes import DOMAIN, DOMAIN_VERSION, Dyadic, Scheme, Xxh32

MODELS = Path(__file__).resolve().parent.parent / "models"
DIGITS = MODELS / "mnist-test-1k.npy"
OPSET = 20
EMBEDDINGS, BAG = 10**6, 50
SMALLEST = 16
"""Numbers that a hashed matrix has at least: a run of block 16 must fit."""

Feed = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Variant:
    """A scheme (dyadic, or xxh32 with a block) and a compression factor."""

    scheme: str
    block: int
    compression: int

    @property
    def label(self) -> str:
        """As tables have it: `dyadic 64`, `xxh32/16 64`."""
        return f"{self.scheme_label} {self.compression}"

    @property
    def scheme_label(self) -> str:
        """`dyadic`, `xxh32/1` or `xxh32/16`."""
        return self.scheme if self.scheme == "dyadic" else f"xxh32/{self.block}"

    def fit(self, rows: int, cols: int, seed: int) -> Scheme:
        """The scheme of a matrix of this size."""
        budget = max(SMALLEST, rows * cols // self.compression)
        if self.scheme == "dyadic":
            return Dyadic.fit(rows, cols, budget, seed)
        return Xxh32.fit(rows, cols, budget, seed, self.block)


SCHEMES = (("dyadic", 0), ("xxh32", 16), ("xxh32", 1))
COMPRESSIONS = (64, 8, 512)
ALL = tuple(Variant(*scheme, c) for c in COMPRESSIONS for scheme in SCHEMES)
WIDE = (*ALL[:3], Variant("dyadic", 0, 8), Variant("dyadic", 0, 512))
"""Without the variants whose check against a dense twin takes longest."""

TABLE = (Variant("xxh32", 16, 1000),)


@dataclass(frozen=True, slots=True)
class Net:
    """A net by name: its variants (the first one's twin is what peers run), how to build one, and its inputs.

    feeds(batch) gives a few different batches, so that no engine sees the same input all the time.
    """

    name: str
    variants: tuple[Variant, ...]
    build: Callable[[Variant], ModelProto]
    feeds: Callable[[int], list[Feed]]


class _Builder:
    """Collects nodes and constants; each method adds a layer and returns the name of its output."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value)
        return name

    def hashed(self, variant: Variant, rows: int, cols: int, deviation: float) -> str:
        """A virtual matrix [rows, cols]."""
        scheme = variant.fit(rows, cols, self.seed + len(self.nodes))
        w = self.constant(deviation * self.rng.standard_normal(scheme.buckets, np.float32))
        name = f"W{len(self.nodes)}"
        self.nodes.append(expand_node(scheme, w, name))
        return name

    def linear(self, x: str, rows: int, cols: int, variant: Variant | None, relu: bool) -> str:
        deviation = float(np.sqrt(2 / rows))
        if variant is None:
            matrix = self.constant(np.float32(deviation) * self.rng.standard_normal((rows, cols), np.float32))
        else:
            matrix = self.hashed(variant, rows, cols, deviation)
        bias = self.constant(np.float32(0.01) * self.rng.standard_normal(cols, np.float32))
        y = self.node("Add", [self.node("MatMul", [x, matrix]), bias])
        return self.node("Relu", [y]) if relu else y

    def mlp(self, x: str, sizes: Sequence[int], variant: Variant | None) -> str:
        last = len(sizes) - 2
        for k, (rows, cols) in enumerate(itertools.pairwise(sizes)):
            x = self.linear(x, rows, cols, variant, relu=k < last)
        return x

    def conv(self, x: str, channels: int, maps: int, variant: Variant | None) -> str:
        """3 x 3, padded, with a bias and a ReLU."""
        rows, deviation = 9 * channels, float(np.sqrt(2 / (9 * channels)))
        if variant is None:
            shape = (maps, channels, 3, 3)
            weight = self.constant(np.float32(deviation) * self.rng.standard_normal(shape, np.float32))
        else:
            turned = self.node("Transpose", [self.hashed(variant, rows, maps, deviation)], perm=[1, 0])
            weight = self.node("Reshape", [turned, self.constant(np.array([maps, channels, 3, 3]))])
        bias = self.constant(np.float32(0.01) * self.rng.standard_normal(maps, np.float32))
        return self.node("Relu", [self.node("Conv", [x, weight, bias], pads=[1, 1, 1, 1])])

    def model(self, x: tuple[str, Any, Sequence[int | str]], y: str, shape: Sequence[int | str]) -> ModelProto:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(x[1]))
        self.nodes[-1].output[0] = "y"
        assert self.nodes[-1].name == y
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info(x[0], kind, x[2])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
        return with_bodies(helper.make_model(graph, opset_imports=opsets, ir_version=10))


def digit_mlp(sizes: Sequence[int], variant: Variant) -> ModelProto:
    """uint8 digits [N, 28, 28], scaled in the graph, through an MLP."""
    b = _Builder(len(sizes))
    x = b.node("Mul", [b.node("Cast", ["image"], to=onnx.TensorProto.FLOAT), b.constant(np.float32(1 / 255))])
    x = b.node("Reshape", [x, b.constant(np.array([-1, 784]))])
    return b.model(("image", np.uint8, ["N", 28, 28]), b.mlp(x, sizes, variant), ["N", sizes[-1]])


def trained_mlp(variant: Variant) -> ModelProto:
    """784-1000-10 as this repository ships it, where this variant is shipped."""
    if variant.block != 16:
        path = MODELS / f"mnist-{variant.scheme}-{variant.compression}x.hnet"
        if path.exists():
            return onnx.load(path)
    return digit_mlp((784, 1000, 10), variant)


def plain_mlp(sizes: Sequence[int], variant: Variant) -> ModelProto:
    """x [N, sizes[0]] through an MLP."""
    b = _Builder(sizes[0])
    return b.model(("x", np.float32, ["N", sizes[0]]), b.mlp("x", sizes, variant), ["N", sizes[-1]])


def embedding_net(variant: Variant) -> ModelProto:
    """Bags of ids [N, 50] -> mean of their rows in a virtual table [1 M, 64] -> a dense MLP 64-256-10."""
    b = _Builder(64)
    rows = b.node("Gather", [b.hashed(variant, EMBEDDINGS, 64, 1.0), "ids"], axis=0)
    mean = b.node("ReduceMean", [rows, b.constant(np.array([1]))], keepdims=0)
    return b.model(("ids", np.int64, ["N", BAG]), b.mlp(mean, (64, 256, 10), None), ["N", 10])


def small_cnn(variant: Variant) -> ModelProto:
    """Images [N, 3, 32, 32]: 3 x 3 convolutions of 32 (not hashed), 64, 128 and 128 maps, two pools, one Linear."""
    b = _Builder(32)
    pool: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    x = b.conv(b.conv("x", 3, 32, None), 32, 64, variant)
    x = b.conv(b.conv(b.node("MaxPool", [x], **pool), 64, 128, variant), 128, 128, variant)
    x = b.node("Flatten", [b.node("MaxPool", [x], **pool)], axis=1)
    return b.model(("x", np.float32, ["N", 3, 32, 32]), b.linear(x, 128 * 64, 10, variant, relu=False), ["N", 10])


def digit_feeds(batch: int) -> list[Feed]:
    """Batches of the 1 000 real test digits."""
    digits = _digits()
    starts = range(0, max(1, min(32 * batch, len(digits) - batch + 1)), batch)
    return [{"image": np.ascontiguousarray(digits[k : k + batch])} for k in starts]


@cache
def _digits() -> np.ndarray:
    loaded: np.ndarray = np.load(DIGITS)
    return loaded


def normal_feeds(shape: Sequence[int], batch: int) -> list[Feed]:
    """Normal numbers."""
    rng = np.random.default_rng(7)
    return [{"x": rng.standard_normal((batch, *shape), np.float32)} for _ in range(4)]


def bag_feeds(batch: int) -> list[Feed]:
    """Ids whose logarithm is uniform: Zipf's law with exponent 1 over a vocabulary sorted by frequency."""
    rng = np.random.default_rng(8)
    size = (batch, BAG)
    return [{"ids": np.exp(rng.uniform(0, np.log(EMBEDDINGS), size)).astype(np.int64)} for _ in range(8)]


def _mlp(sizes: Sequence[int], variants: tuple[Variant, ...]) -> Net:
    name = "-".join(map(str, sizes))
    return Net(name, variants, lambda v: plain_mlp(sizes, v), lambda batch: normal_feeds(sizes[:1], batch))


NETS: Mapping[str, Net] = {
    net.name: net
    for net in (
        Net("784-1000-10", ALL, trained_mlp, digit_feeds),
        Net("784-1000-1000-10", ALL, lambda v: digit_mlp((784, 1000, 1000, 10), v), digit_feeds),
        _mlp((4096, 4096, 4096, 4096, 10), ALL),
        _mlp((8192, 8192, 8192, 10), WIDE),
        Net("embedding", TABLE, embedding_net, bag_feeds),
        Net("cnn", ALL, small_cnn, lambda batch: normal_feeds((3, 32, 32), batch)),
    )
}
QUICK = tuple(NETS)[:3]
"""The nets of a quick run, which takes of each the variants of the first compression factor."""
