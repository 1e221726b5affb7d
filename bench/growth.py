"""Time and bytes of one square layer against its width: at a fixed compression, at a fixed K, and dense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bench.peers import FP32, DisagreementError, Twin
from bench.timing import Run, Spread, alternate, once, ratios
from hashinfer.model.write import expand_node, with_bodies
from hashinfer.schemes import DOMAIN, DOMAIN_VERSION, Dyadic, Scheme, Xxh32

WIDTHS = tuple(2**k for k in range(8, 15))
QUICK_WIDTHS = (256, 1024, 4096)
COMPRESSION, BUCKETS = 64, 2**16
CHECKED = 48
TOLERANCE = 1e-4

CURVES: dict[str, Callable[[int], Scheme]] = {
    f"dyadic, compression {COMPRESSION}": lambda n: Dyadic.fit(n, n, n * n // COMPRESSION, n),
    f"dyadic, K = {BUCKETS}": lambda n: Dyadic.fit(n, n, BUCKETS, n),
    f"xxh32 block 16, compression {COMPRESSION}": lambda n: Xxh32.fit(n, n, n * n // COMPRESSION, n, 16),
    f"xxh32 block 16, K = {BUCKETS}": lambda n: Xxh32.fit(n, n, BUCKETS, n, 16),
}


def grow(width: int, seconds: float, folder: Path) -> dict[str, Any]:
    """x [1, width] @ W [width, width] for each curve and in onnxruntime, one thread. Answers are checked first.

    Raises DisagreementError where a sample of outputs differs from x @ W in float64.
    """
    import hashinfer

    rng = np.random.default_rng(width)
    x = rng.standard_normal((1, width), np.float32)
    dense = np.resize(rng.standard_normal(2**16 + 1, np.float32), (width, width)) / np.float32(np.sqrt(width))
    columns = np.unique(rng.integers(0, width, CHECKED))
    twin = Twin(_model(width, [helper.make_node("MatMul", ["x", "W"], ["y"])], "W", dense), folder)
    peer = twin.peer(FP32, 1)
    _check(FP32, peer.run({"x": x})[:, columns], x, dense[:, columns])
    runs: dict[str, Run] = {FP32: lambda _: peer.run({"x": x})}
    bytes_ = {FP32: dense.nbytes}
    sessions = []
    for name, fit in CURVES.items():
        scheme = fit(width)
        w = rng.standard_normal(scheme.buckets, np.float32) / np.float32(np.sqrt(width))
        nodes = [expand_node(scheme, "w", "W"), helper.make_node("MatMul", ["x", "W"], ["y"])]
        session = hashinfer.InferenceSession(with_bodies(_model(width, nodes, "w", w)).SerializeToString(), threads=1)
        sessions.append(session)
        bucket, sign = scheme.cells(np.arange(width)[:, None], columns[None, :])
        _check(name, session.run(None, {"x": x})[0][:, columns], x, w[bucket] * sign)
        bytes_[name] = session.weight_bytes + session.plan({"x": x.shape}).buffer_bytes
        runs[name] = _runner(session, x)
    for run in runs.values():
        once(run)
    samples = alternate(runs, seconds * len(runs))
    for session in sessions:
        session.close()
    twin.drop()
    return {
        "width": width,
        "bytes": bytes_,
        "us": {name: Spread.of(s).data(1e6) for name, s in samples.items()},
        "faster": {name: ratios(samples[FP32], samples[name]).data() for name in CURVES},
    }


def _runner(session: Any, x: np.ndarray) -> Run:
    return lambda _: session.run(None, {"x": x})


def _check(name: str, found: np.ndarray, x: np.ndarray, part: np.ndarray) -> None:
    exact = x.astype(np.float64) @ part
    worst = float(np.abs(found - exact).max() / np.abs(exact).max())
    if not worst <= TOLERANCE:
        raise DisagreementError(f"{name}, width {x.shape[1]}: differs by {worst:.3g} of the largest output")


def _model(width: int, nodes: list[onnx.NodeProto], name: str, value: np.ndarray) -> onnx.ModelProto:
    shape: list[int | str] = ["N", width]
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(value, name)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets if len(nodes) > 1 else opsets[:1], ir_version=10)
