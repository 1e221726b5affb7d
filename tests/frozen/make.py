"""Makes the frozen files: `python -m tests.frozen.make` adds those that are not there yet, and touches no other.

Each NAME.hnet has a NAME.npz beside it with inputs "in NAME" and outputs "out NAME", computed in float64 from W itself.
SHA256SUMS holds both: what is written here once is read for ever, so a file that is there is never made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from hashinfer.model.write import expand_node
from hashinfer.schemes import Dyadic, Scheme, Xxh32
from tests import nets
from tests.nets import node

FOLDER = Path(__file__).parent
F32, F64 = np.float32, np.float64
Arrays = dict[str, np.ndarray]
Case = tuple[ModelProto, Arrays, Arrays]


class Layer:
    """A hashed weight: the nodes that make W from constants, and W in float64."""

    def __init__(self, scheme: Scheme, stored: str, number: int = 0, zero: int | None = None) -> None:
        w = nets.weights(scheme.buckets, 7 + number)
        self.name = f"W{number}"
        source = stored_name = f"w{number}"
        self.nodes: list[NodeProto] = []
        self.constants: Arrays = {stored_name: w}
        if stored == "float16":
            self.constants[stored_name] = half = w.astype(np.float16)
            w, source = half.astype(F32), f"{stored_name}/wide"
            self.nodes.append(node("Cast", [stored_name], [source], to=1))
        elif stored == "int8":
            scale = F32(np.abs(w).max() / 127)
            whole = np.clip(np.rint(w / scale) + (zero or 0), -128, 127).astype(np.int8)
            self.constants |= {stored_name: whole, f"{stored_name}/scale": np.array(scale)}
            w, source = (whole.astype(F32) - F32(zero or 0)) * scale, f"{stored_name}/wide"
            inputs = [stored_name, f"{stored_name}/scale"]
            if zero is not None:
                self.constants[f"{stored_name}/zero"] = np.array(zero, np.int8)
                inputs.append(f"{stored_name}/zero")
            self.nodes.append(node("DequantizeLinear", inputs, [source]))
        self.nodes.append(expand_node(scheme, source, self.name))
        self.w = scheme.expand(w)


def _model(nodes: Sequence[NodeProto], ins: Arrays, outs: Arrays, constants: Arrays, opset: int = 20) -> ModelProto:
    """Inputs whose first dimension is open where there is one."""

    def kinds(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[Any, list[int | str]]]:
        return {k: (a.dtype, ["N", *a.shape[1:]] if a.ndim else []) for k, a in arrays.items()}

    return nets.model(nodes, kinds(ins), kinds(outs), constants, opset=opset)


def _x(rows: int, columns: int, zeros: bool = False) -> np.ndarray:
    x = nets.weights(rows * columns, rows).reshape(rows, columns)
    if zeros:
        x[:, 1::2] = 0
    return x


def mlp(first: Layer, second: Layer, opset: int = 20, bodies: bool = True) -> Case:
    """Two MatMuls with biases and a ReLU between them."""
    b0, b1 = nets.weights(first.w.shape[1], 1), nets.weights(second.w.shape[1], 2)
    x = _x(5, first.w.shape[0], zeros=True)
    nodes = [
        *first.nodes,
        *second.nodes,
        node("MatMul", ["x", first.name], ["m"]),
        node("Add", ["m", "b0"], ["a"]),
        node("Relu", ["a"], ["r"]),
        node("MatMul", ["r", second.name], ["n"]),
        node("Add", ["n", "b1"], ["y"]),
    ]
    hidden = np.maximum(x.astype(F64) @ first.w + b0, 0)
    ins, outs = {"x": x}, {"y": (hidden @ second.w + b1).astype(F32)}
    model = _model(nodes, ins, outs, first.constants | second.constants | {"b0": b0, "b1": b1}, opset)
    if not bodies:
        del model.functions[:]
    return model, ins, outs


def gemm(layer: Layer, transposed: bool) -> Case:
    """Gemm with alpha, beta and a bias, on W or on W transposed."""
    w = layer.w.T if transposed else layer.w
    x, b = _x(3, w.shape[0]), nets.weights(w.shape[1], 3)
    nodes = [*layer.nodes, node("Gemm", ["x", layer.name, "b"], ["y"], alpha=0.5, beta=2.0, transB=int(transposed))]
    ins, outs = {"x": x}, {"y": (0.5 * (x.astype(F64) @ w) + 2.0 * b.astype(F64)).astype(F32)}
    return _model(nodes, ins, outs, layer.constants | {"b": b}), ins, outs


def embedding(layer: Layer, bag: str = "") -> Case:
    """Rows by their ids, or the sum or mean of bags of them."""
    ids = np.array([[0, 3, layer.w.shape[0] - 1], [-1, 2, 2]], np.int64)
    rows = layer.w.astype(F64)[ids]
    nodes = [*layer.nodes, node("Gather", [layer.name, "ids"], ["g" if bag else "y"])]
    constants = dict(layer.constants)
    if bag == "sum":
        nodes.append(node("ReduceSum", ["g", "axes"], ["y"], keepdims=0))
        constants["axes"], rows = np.array([1], np.int64), rows.sum(1)
    elif bag == "mean":
        nodes.append(node("ReduceMean", ["g", "axes"], ["y"], keepdims=0))
        constants["axes"], rows = np.array([1], np.int64), rows.mean(1)
    ins, outs = {"ids": ids}, {"y": rows.astype(F32)}
    return _model(nodes, ins, outs, constants), ins, outs


def conv(layer: Layer, inputs: int, groups: int = 1) -> Case:
    """A 3 x 3 convolution with padding and a bias."""
    outputs = layer.w.shape[1]
    shape = (outputs, inputs // groups, 3, 3)
    x, b = nets.weights(2 * inputs * 6 * 5, 4).reshape(2, inputs, 6, 5), nets.weights(outputs, 5)
    nodes = [
        *layer.nodes,
        node("Transpose", [layer.name], ["t"], perm=[1, 0]),
        node("Reshape", ["t", "shape"], ["k"]),
        node("Conv", ["x", "k", "b"], ["y"], pads=[1, 1, 1, 1], group=groups),
    ]
    padded = np.pad(x.astype(F64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    parts = [
        np.einsum("nchwij,ocij->nohw", w, k)
        for w, k in zip(
            np.split(windows, groups, 1), np.split(layer.w.T.reshape(shape).astype(F64), groups), strict=True
        )
    ]
    ins, outs = {"x": x}, {"y": (np.concatenate(parts, 1) + b[:, None, None]).astype(F32)}
    return _model(nodes, ins, outs, layer.constants | {"shape": np.array(shape, np.int64), "b": b}), ins, outs


def matrix(layer: Layer) -> Case:
    """W itself, where nothing is fused with it."""
    x = np.zeros((1, 1), F32)
    nodes = [*layer.nodes, node("Identity", [layer.name], ["W"]), node("Neg", ["x"], ["y"])]
    ins, outs = {"x": x}, {"W": layer.w.astype(F32), "y": -x}
    return _model(nodes, ins, outs, layer.constants), ins, outs


def low_rank(first: Layer, second: Layer) -> Case:
    """Two factors, one after the other, on uint8 pixels scaled inside the graph."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, first.w.shape[0]), np.uint8)
    nodes = [
        *first.nodes,
        *second.nodes,
        node("Cast", ["pixels"], ["f"], to=1),
        node("Mul", ["f", "scale"], ["x"]),
        node("MatMul", ["x", first.name], ["m"]),
        node("MatMul", ["m", second.name], ["y"]),
    ]
    x = pixels.astype(F32) * F32(1 / 255)
    ins, outs = {"pixels": pixels}, {"y": (x.astype(F64) @ first.w @ second.w).astype(F32)}
    constants = first.constants | second.constants | {"scale": np.array(1 / 255, F32)}
    return _model(nodes, ins, outs, constants), ins, outs


def quantized(layer: Layer) -> Case:
    """A hashed layer, its output quantised and back, then a dense layer of int8 weights."""
    x, dense = (
        _x(4, layer.w.shape[0]),
        np.random.default_rng(5).integers(-99, 99, (layer.w.shape[1], 6)).astype(np.int8),
    )
    nodes = [
        *layer.nodes,
        node("MatMul", ["x", layer.name], ["m"]),
        node("QuantizeLinear", ["m", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("DequantizeLinear", ["dense", "t"], ["D"]),
        node("MatMul", ["d", "D"], ["y"]),
    ]
    scale, zero, t = F32(0.25), np.uint8(128), F32(0.01)
    rounded = np.clip(np.rint(x.astype(F64) @ layer.w / scale) + zero, 0, 255) - zero
    ins = {"x": x}
    outs = {"y": (rounded * scale @ (dense.astype(F64) * t)).astype(F32)}
    constants = layer.constants | {"s": np.array(scale), "z": np.array(zero), "dense": dense, "t": np.array(t)}
    return _model(nodes, ins, outs, constants), ins, outs


def described(case: Case) -> Case:
    """With the fields that describe a model, and a foreign opset import, which changes nothing."""
    model, ins, outs = case
    model.producer_name, model.producer_version, model.doc_string = "frozen", "1", "a model"
    model.domain, model.model_version, model.graph.doc_string = "org.example", 3, "a graph"
    model.metadata_props.add(key="colour", value="grün")
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model, ins, outs


def _dyadic(rows: int, cols: int, buckets: int, width: int, seed: int = 1) -> Dyadic:
    return Dyadic(buckets, rows, cols, seed, width)


def _xxh32(rows: int, cols: int, buckets: int, block: int, seed: int = 1) -> Xxh32:
    return Xxh32(buckets, rows, cols, seed, block)


CASES: dict[str, Callable[[], Case]] = {
    **{
        f"mlp-{name}-{stored}": lambda make=make, stored=stored: mlp(
            Layer(make(40, 24), stored), Layer(make(24, 7, 2), stored, 1)
        )
        for name, make in {
            "dyadic": lambda rows, cols, seed=1: _dyadic(rows, cols, 64, 16, seed),
            "xxh32-block1": lambda rows, cols, seed=1: _xxh32(rows, cols, 50, 1, seed),
            "xxh32-block4": lambda rows, cols, seed=1: _xxh32(rows, cols, 50, 4, seed),
        }.items()
        for stored in ("float32", "float16", "int8")
    },
    "mlp-dyadic-one-group-seed-max": lambda: mlp(
        Layer(_dyadic(70, 90, 128, 128, 2**32 - 1), "float32"), Layer(_dyadic(90, 3, 8, 4, 0), "float32", 1)
    ),
    "mlp-dyadic-width1": lambda: mlp(
        Layer(_dyadic(6, 20, 10, 1), "float32"), Layer(_dyadic(20, 5, 5, 1), "float32", 1)
    ),
    "mlp-xxh32-one-bucket": lambda: mlp(Layer(_xxh32(9, 8, 1, 1), "float32"), Layer(_xxh32(8, 4, 4, 4), "float32", 1)),
    "mlp-mixed-opset18": lambda: mlp(
        Layer(_dyadic(40, 24, 64, 16), "float16"), Layer(_xxh32(24, 7, 50, 2), "float32", 1), opset=18
    ),
    "mlp-no-bodies": lambda: mlp(
        Layer(_dyadic(40, 24, 64, 16), "float32"), Layer(_xxh32(24, 7, 50, 16), "int8", 1, 5), bodies=False
    ),
    "mlp-described": lambda: described(
        mlp(Layer(_dyadic(40, 24, 64, 32), "float32"), Layer(_xxh32(24, 7, 50, 3), "float32", 1))
    ),
    "mlp-int8-zero-point": lambda: mlp(
        Layer(_dyadic(40, 24, 64, 16), "int8", 0, -3), Layer(_xxh32(24, 7, 50, 1), "int8", 1, 4)
    ),
    "gemm-dyadic": lambda: gemm(Layer(_dyadic(20, 33, 64, 32), "float32"), False),
    "gemm-dyadic-transposed": lambda: gemm(Layer(_dyadic(20, 33, 64, 32), "int8"), True),
    "gemm-xxh32": lambda: gemm(Layer(_xxh32(20, 33, 64, 16), "float16"), False),
    "gemm-xxh32-transposed": lambda: gemm(Layer(_xxh32(20, 33, 64, 5), "float32"), True),
    "embedding-float32": lambda: embedding(Layer(_xxh32(100, 24, 90, 8), "float32")),
    "embedding-int8": lambda: embedding(Layer(_xxh32(100, 24, 90, 1), "int8")),
    "bag-sum": lambda: embedding(Layer(_xxh32(100, 24, 90, 16), "float16"), "sum"),
    "bag-mean": lambda: embedding(Layer(_xxh32(100, 24, 90, 4), "float32"), "mean"),
    "conv-dyadic": lambda: conv(Layer(_dyadic(27, 10, 64, 32), "float32"), 3),
    "conv-dyadic-float16": lambda: conv(Layer(_dyadic(27, 10, 64, 32), "float16"), 3),
    "conv-xxh32-int8": lambda: conv(Layer(_xxh32(27, 10, 64, 2), "int8"), 3),
    "conv-xxh32-groups": lambda: conv(Layer(_xxh32(18, 12, 64, 2), "float32"), 4, groups=2),
    "conv-dyadic-groups": lambda: conv(Layer(_dyadic(18, 12, 64, 16), "float32"), 4, groups=2),
    "matrix-dyadic": lambda: matrix(Layer(_dyadic(17, 19, 48, 8), "float32")),
    "matrix-xxh32": lambda: matrix(Layer(_xxh32(17, 19, 48, 7), "float32")),
    "low-rank-pixels": lambda: low_rank(
        Layer(_dyadic(49, 12, 64, 64), "float32"), Layer(_xxh32(12, 30, 40, 6), "float32", 1)
    ),
    "quantized": lambda: quantized(Layer(_dyadic(16, 20, 32, 16), "float32")),
}


def main() -> None:
    """Add the files that are missing."""
    for name, make in CASES.items():
        if (FOLDER / f"{name}.hnet").exists():
            continue
        model, ins, outs = make()
        arrays = {f"in {k}": v for k, v in ins.items()} | {f"out {k}": v for k, v in outs.items()}
        np.savez_compressed(FOLDER / f"{name}.npz", **arrays)
        (FOLDER / f"{name}.hnet").write_bytes(model.SerializeToString(deterministic=True))
    files = sorted((*FOLDER.glob("*.hnet"), *FOLDER.glob("*.npz")))
    sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in files]
    (FOLDER / "SHA256SUMS").write_text("".join(sums))


if __name__ == "__main__":
    main()
