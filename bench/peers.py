"""The engines to hold against: onnxruntime in fp32 and int8, OpenVINO in fp32, NumPy; each runs the dense twin."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

Feed = Mapping[str, Any]
Array = np.ndarray[Any, Any]

FP32, INT8, OPENVINO, NUMPY = "onnxruntime fp32", "onnxruntime int8", "openvino fp32", "numpy"
NAMES = (FP32, INT8, OPENVINO, NUMPY)
TOLERANCES = {FP32: 1e-4, INT8: 0.05, OPENVINO: 1e-4, NUMPY: 1e-4}
"""Largest difference from hashinfer's answer, over the largest answer. int8 is held to its own error: one to three
percent behind a few layers of dynamic quantisation with one scale a tensor."""


class DisagreementError(Exception):
    """A peer's answer is not ours: its time would mean nothing."""


@dataclass(slots=True)
class Peer:
    """An engine ready to run. close: gives its threads and memory back."""

    name: str
    run: Callable[[Feed], Array]
    close: Callable[[], None] = field(default=lambda: None)


class Twin:
    """A dense twin in the forms that peers load. Made once; each file is written when a peer first asks for it."""

    def __init__(self, model: ModelProto, folder: Path) -> None:
        self.model = _folded(model)
        self.folder = Path(tempfile.mkdtemp(dir=folder))
        self.fp32 = self.folder / "dense.onnx"
        self.fp32.write_bytes(self.model.SerializeToString())
        self._int8: Path | None = None

    @property
    def int8(self) -> Path:
        """The file that onnxruntime's quantize_dynamic makes, with its defaults."""
        if self._int8 is None:
            import logging

            from onnxruntime.quantization import quantize_dynamic

            self._int8 = self.folder / "int8.onnx"
            logging.disable(logging.WARNING)
            try:
                quantize_dynamic(self.fp32, self._int8)
            finally:
                logging.disable(logging.NOTSET)
        return self._int8

    def drop(self) -> None:
        """Remove the files."""
        shutil.rmtree(self.folder)

    def peer(self, name: str, threads: int) -> Peer:
        """A peer by name. Raises ImportError where it is not installed, ValueError where it cannot run this net."""
        make = {FP32: self._fp32_peer, INT8: self._int8_peer, OPENVINO: self._openvino, NUMPY: self._numpy}[name]
        return make(threads)

    def _fp32_peer(self, threads: int) -> Peer:
        return _onnxruntime(FP32, self.fp32, threads)

    def _int8_peer(self, threads: int) -> Peer:
        return _onnxruntime(INT8, self.int8, threads)

    def _openvino(self, threads: int) -> Peer:
        import openvino

        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        # Pinning would bind the calling thread, and with it all engines' threads that start later, to one processor.
        settings |= {"PERFORMANCE_HINT": "LATENCY", "ENABLE_CPU_PINNING": False}
        compiled = openvino.Core().compile_model(str(self.fp32), "CPU", settings)
        request = compiled.create_infer_request()
        return Peer(OPENVINO, lambda feed: request.infer(dict(feed), share_inputs=True, share_outputs=True)[0])

    def _numpy(self, threads: int) -> Peer:
        from threadpoolctl import threadpool_limits

        limits = threadpool_limits(threads)
        return Peer(NUMPY, _in_numpy(self.model), limits.restore_original_limits)


def _onnxruntime(name: str, path: Path, threads: int) -> Peer:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    return Peer(name, lambda feed: session.run(None, feed)[0])


def error(found: Array, expected: Array) -> float:
    """The largest difference over the largest expected value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def check(name: str, found: Array, expected: Array) -> float:
    """The error of a peer, or of ours by any other name. Raises DisagreementError above its tolerance."""
    worst, allowed = error(found, expected), TOLERANCES.get(name, TOLERANCES[FP32])
    if not worst <= allowed:
        raise DisagreementError(f"{name}: its answer differs by {worst:.3g} of the largest; allowed are {allowed:g}")
    return worst


def _folded(model: ModelProto) -> ModelProto:
    """`model` with Transpose and Reshape of constants done: convolution weights as plain initializers."""
    constants = {t.name: t for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.op_type not in ("Transpose", "Reshape") or not all(name in constants for name in node.input):
            kept.append(node)
            continue
        values = [numpy_helper.to_array(constants[name]) for name in node.input]
        if node.op_type == "Reshape":
            made = values[0].reshape(values[1])
        else:
            made = values[0].transpose(*[list(a.ints) for a in node.attribute if a.name == "perm"])
        constants[node.output[0]] = numpy_helper.from_array(np.ascontiguousarray(made), node.output[0])
    used = {name for node in kept for name in node.input}
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(t for name, t in constants.items() if name in used)
    return model


def _in_numpy(model: ModelProto) -> Callable[[Feed], Array]:
    """The net as a user would write it in NumPy. Raises ValueError for an op that has no plain form there."""
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    simple: dict[str, Callable[..., Any]] = {
        "MatMul": np.matmul,
        "Add": np.add,
        "Mul": np.multiply,
        "Relu": lambda x: np.maximum(x, 0, out=x),
        "Gather": lambda table, ids: table[ids],
        "ReduceMean": lambda x, axes: x.mean(tuple(axes)),
        "Reshape": lambda x, shape: x.reshape(shape),
        "Flatten": lambda x: x.reshape(len(x), -1),
        "Cast": lambda x: x.astype(np.float32),
    }
    missing = {n.op_type for n in model.graph.node} - set(simple)
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))}: not one call in NumPy")
    steps = [(simple[n.op_type], list(n.input), n.output[0]) for n in model.graph.node]
    last = model.graph.output[0].name

    def run(feed: Feed) -> Array:
        values: dict[str, Any] = constants | dict(feed)
        for function, inputs, output in steps:
            values[output] = function(*[values[name] for name in inputs])
        found: Array = values[last]
        return found

    return run


def twin_of(model: ModelProto, folder: Path) -> Twin:
    """The dense twin of a hashed model."""
    from hashinfer.model.dense import dense_twin

    return Twin(dense_twin(model, 2**31), folder)


def file_bytes(model: ModelProto) -> int:
    """Size of a model's file."""
    return len(model.SerializeToString(deterministic=True))
