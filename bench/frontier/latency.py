"""Time of one row for each point: hashed nets in hashinfer, dense forms in onnxruntime, in turn on one thread.

    python -m bench.frontier.latency [--seconds S]

Weights do not change these times, so each net is made with random ones. What onnxruntime has no kernel for is timed as
what it would have to run: a pruned matrix as a full one, 2 bits as 4.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper, numpy_helper

from bench.environment import environment
from bench.frontier import forms
from bench.frontier.points import DENSE, FEWER_BITS, FULL, HASHED, LOW_RANK, MAGNITUDE, OBD, SMALL, UNITS, Point, points
from bench.paper.cells import widest
from bench.paper.nets import HashedLayer
from bench.timing import Run, Spread, alternate
from hashinfer.files import atomic_write
from hashinfer.model.write import expand_node, with_bodies
from hashinfer.schemes import DOMAIN, DOMAIN_VERSION

HERE = Path(__file__).parent
TIMES = HERE / "results" / "latency.json"
FIELDS = ("family", "scheme", "level", "weights", "engine")
HASHED_FORMATS = ("float32", "float16", "int8")
"""int4 weight vectors are unpacked to int8 when they are loaded: no faster, no slower."""


def mlp(matrices: Sequence[Sequence[np.ndarray]]) -> ModelProto:
    """x [1, 784] through layers, each a product of one or two matrices, with biases and ReLU between."""
    nodes: list[Any] = []
    constants: list[Any] = []
    value = "x"
    for k, parts in enumerate(matrices):
        for part, matrix in enumerate(parts):
            constants.append(numpy_helper.from_array(matrix, f"w{k}{part}"))
        if len(parts) > 1:
            nodes.append(helper.make_node("MatMul", [value, f"w{k}0"], [f"n{k}"], name=f"n{k}"))
            value = f"n{k}"
        value = _affine(nodes, constants, [value, f"w{k}{len(parts) - 1}"], parts[-1].shape[1], str(k))
        if k + 1 < len(matrices):
            value = _relu(nodes, value)
    return _model(nodes, constants, value, [helper.make_opsetid("", 20)])


def hashed(point: Point, kind: str) -> ModelProto:
    """A hashed net of a point's size, its biases beside it as the product has them, not a row of each W."""
    net = forms.hashed(point.scheme, UNITS, FULL // point.level, 1)
    rng, nodes, constants, value = np.random.default_rng(1), [], [], "x"
    whole = [layer.scheme for layer in net.layers if isinstance(layer, HashedLayer)]
    for k, scheme in enumerate(dataclasses.replace(s, rows=s.rows - 1) for s in whole):
        w, name = rng.standard_normal(scheme.buckets, np.float32), f"w{k}"
        if kind == "int8":
            constants.append(numpy_helper.from_array(np.clip(w * 40, -127, 127).astype(np.int8), f"q{k}"))
            constants.append(numpy_helper.from_array(np.array(1 / 40, np.float32), f"s{k}"))
            nodes.append(helper.make_node("DequantizeLinear", [f"q{k}", f"s{k}"], [name], name=f"dq{k}"))
        elif kind == "float16":
            constants.append(numpy_helper.from_array(w.astype(np.float16), f"q{k}"))
            nodes.append(helper.make_node("Cast", [f"q{k}"], [name], name=f"cast{k}", to=onnx.TensorProto.FLOAT))
        else:
            constants.append(numpy_helper.from_array(w, name))
        nodes.append(expand_node(scheme, name, f"W{k}"))
        value = _affine(nodes, constants, [value, f"W{k}"], scheme.cols, str(k))
        if k + 1 < len(net.layers):
            value = _relu(nodes, value)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return with_bodies(_model(nodes, constants, value, opsets))


def _affine(nodes: list[Any], constants: list[Any], operands: list[str], cols: int, label: str) -> str:
    constants.append(numpy_helper.from_array(np.zeros(cols, np.float32), f"b{label}"))
    nodes.append(helper.make_node("MatMul", operands, [f"m{label}"], name=f"m{label}"))
    nodes.append(helper.make_node("Add", [f"m{label}", f"b{label}"], [f"a{label}"], name=f"a{label}"))
    return f"a{label}"


def _relu(nodes: list[Any], value: str) -> str:
    nodes.append(helper.make_node("Relu", [value], [f"r{value}"], name=f"r{value}"))
    return f"r{value}"


def _model(nodes: list[Any], constants: list[Any], value: str, opsets: list[Any]) -> ModelProto:
    nodes[-1].output[0] = "y"
    kind = onnx.TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(n, kind, ["N", size]) for n, size in (("x", UNITS[0]), ("y", UNITS[-1]))]
    graph = helper.make_graph(nodes, "net", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def dense_form(point: Point) -> ModelProto:
    """The matrices that onnxruntime multiplies with."""
    rng = np.random.default_rng(1)

    def matrix(m: int, n: int) -> np.ndarray:
        return rng.standard_normal((m, n), np.float32)

    (m, n, p), rank = UNITS, point.level
    if point.family == SMALL:
        n = widest(1, p, FULL // point.level)
    if point.family == LOW_RANK:
        second = [matrix(n, rank), matrix(rank, p)] if rank < p else [matrix(n, p)]
        return mlp([[matrix(m, rank), matrix(rank, n)], second])
    return mlp([[matrix(m, n)], [matrix(n, p)]])


def _onnxruntime(path: Path) -> Run:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    feeds = _feeds()
    return lambda number: session.run(None, feeds[number % len(feeds)])


def _feeds() -> list[dict[str, np.ndarray]]:
    digits = np.load(HERE.parents[1] / "models" / "mnist-test-1k.npy")[:32].reshape(32, 1, -1)
    return [{"x": digit.astype(np.float32) / 255} for digit in digits]


def runs(folder: Path) -> Iterator[tuple[tuple[str, ...], Run]]:
    """((family, scheme, level, weights, engine), how to run it) of every point and format that is timed."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    import hashinfer

    # The tool advises on pre-processing at every call.
    logging.getLogger().setLevel(logging.ERROR)
    feeds = _feeds()
    for point in points():
        if point.distilled or point.family in (MAGNITUDE, OBD, FEWER_BITS):
            continue
        names = (point.family, point.scheme, str(point.level))
        if point.family == HASHED:
            for kind in HASHED_FORMATS:
                session = hashinfer.InferenceSession(hashed(point, kind).SerializeToString(), threads=1)
                yield (*names, kind, "hashinfer"), _with(session.run, feeds)
            continue
        path, small = folder / "float32.onnx", folder / "int8.onnx"
        onnx.save(dense_form(point), path)
        yield (*names, "float32", "onnxruntime"), _onnxruntime(path)
        quantize_dynamic(path, small, weight_type=QuantType.QInt8)
        yield (*names, "int8", "onnxruntime"), _onnxruntime(small)
        if point.family == DENSE:
            four = _four_bits(path, folder / "int4.onnx")
            if four is not None:
                yield (*names, "int4", "onnxruntime"), _onnxruntime(four)


def _with(run: Callable[..., Any], feeds: list[dict[str, np.ndarray]]) -> Run:
    return lambda number: run(None, feeds[number % len(feeds)])


def _four_bits(path: Path, target: Path) -> Path | None:
    """The net with MatMulNBits; None where onnxruntime's tool for that is not to be had."""
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    except ImportError:
        return None
    quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=128, is_symmetric=True)
    quantizer.process()
    onnx.save(quantizer.model.model, target)
    return target


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.3, help="for each net")
    parser.add_argument("--out", type=Path, default=TIMES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = dict(runs(Path(folder)))
        for run in found.values():
            run(0)
        samples = alternate({"\t".join(k): run for k, run in found.items()}, options.seconds * len(found))
    times = [
        dict(zip(FIELDS, name.split("\t"), strict=True)) | {"us": Spread.of(seconds).data(1e6)}
        for name, seconds in samples.items()
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(options.out) as file:
        file.write((json.dumps({"environment": environment(), "times": times}, indent=1) + "\n").encode())
    for row in times:
        print(*(row[f] for f in FIELDS), f"{row['us']['median']:.2f} us")


if __name__ == "__main__":
    main()
