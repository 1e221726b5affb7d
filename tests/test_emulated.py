"""Compiled models on other CPUs: built for every target, run there under an emulator, held against the engine here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

import hashinfer
from bench.native.emulate import PLACES, program
from hashinfer.model.write import expand_node
from hashinfer.native.emit.targets import PRESETS
from tests import nets
from tests.processes import unmeasured

MODELS = Path(__file__).parent.parent / "models"
SHIPPED = sorted(path.stem for path in MODELS.glob("*.hnet"))
ROWS = 3

pytestmark = pytest.mark.unmeasured

Feed = Mapping[str, np.ndarray]


def cnn() -> tuple[onnx.ModelProto, Feed]:
    """A hashed convolution, pooling, dense and hashed layers, each activation that is fused."""
    first, last = nets.scheme("dyadic", 9, 8, 32), nets.scheme("xxh32", 72, 24, 200, parameter=4)
    nodes = [
        expand_node(first, "w", "W"),
        nets.node("Transpose", ["W"], ["T"], perm=[1, 0]),
        nets.node("Reshape", ["T", "shape"], ["K"]),
        nets.node("Conv", ["x", "K", "b"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        nets.node("Relu", ["c"], ["r"]),
        nets.node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        nets.node("Flatten", ["p"], ["f"]),
        expand_node(last, "v", "V"),
        nets.node("MatMul", ["f", "V"], ["m"]),
        nets.node("Sigmoid", ["m"], ["s"]),
        nets.node("Gemm", ["s", "D", "d"], ["g"], alpha=0.5),
        nets.node("Tanh", ["g"], ["y"]),
    ]
    constants = {
        "w": nets.weights(first.buckets),
        "shape": np.array([8, 1, 3, 3]),
        "b": nets.weights(8, 1),
        "v": nets.weights(last.buckets, 2),
        "D": nets.weights(24 * 5, 3).reshape(24, 5),
        "d": nets.weights(5, 4),
    }
    model = nets.model(nodes, {"x": (np.float32, ["N", 1, 12, 12])}, {"y": (np.float32, ["N", 5])}, constants)
    return model, {"x": nets.weights(ROWS * 144, 5).reshape(ROWS, 1, 12, 12)}


def embedding() -> tuple[onnx.ModelProto, Feed]:
    """Rows of a hashed table: no arithmetic that could round."""
    table = nets.scheme("xxh32", 50, 8, 64, parameter=4)
    nodes = [expand_node(table, "w", "W"), nets.node("Gather", ["W", "ids"], ["y"], axis=0)]
    ids = np.array([[0, 49, -50], [1, 2, 3], [48, -1, 7]])
    model = nets.model(
        nodes, {"ids": (np.int64, ["N", 3])}, {"y": (np.float32, ["N", 3, 8])}, {"w": nets.weights(table.buckets)}
    )
    return model, {"ids": ids}


def narrow_weights() -> tuple[onnx.ModelProto, Feed]:
    """Weight vectors of int8 and of float16."""
    first, last = nets.scheme("dyadic", 64, 32, 128), nets.scheme("xxh32", 32, 20, 64, parameter=1)
    nodes = [
        nets.node("DequantizeLinear", ["q", "scale"], ["w"]),
        expand_node(first, "w", "W"),
        nets.node("MatMul", ["x", "W"], ["m"]),
        nets.node("Relu", ["m"], ["r"]),
        nets.node("Cast", ["h"], ["v"], to=onnx.TensorProto.FLOAT),
        expand_node(last, "v", "V"),
        nets.node("MatMul", ["r", "V"], ["y"]),
    ]
    constants = {
        "q": np.random.default_rng(0).integers(-100, 100, first.buckets).astype(np.int8),
        "scale": np.float32(0.01),
        "h": nets.weights(last.buckets, 1).astype(np.float16),
    }
    model = nets.model(nodes, {"x": (np.float32, ["N", 64])}, {"y": (np.float32, ["N", 20])}, constants)
    x = nets.weights(ROWS * 64, 2).reshape(ROWS, 64)
    x[1, 3], x[2] = np.nan, 1e-30
    return model, {"x": x}


def row_by_row() -> tuple[onnx.ModelProto, Feed]:
    """Layer normalisation, GELU in both forms, softmax."""
    nodes = [
        nets.node("LayerNormalization", ["x", "scale", "bias"], ["n"]),
        nets.node("Gelu", ["n"], ["g"]),
        nets.node("Gelu", ["g"], ["h"], approximate="tanh"),
        nets.node("Softmax", ["h"], ["y"], axis=-1),
    ]
    model = nets.model(
        nodes,
        {"x": (np.float32, ["N", 3, 20])},
        {"y": (np.float32, ["N", 3, 20])},
        {"scale": nets.weights(20), "bias": nets.weights(20, 1)},
    )
    return model, {"x": nets.weights(ROWS * 60, 2).reshape(ROWS, 3, 20)}


def arithmetic() -> tuple[onnx.ModelProto, Feed]:
    """Several inputs and outputs, integers among them; each operation rounds once, so bits are the same everywhere."""
    nodes = [
        nets.node("Cast", ["n"], ["a"], to=onnx.TensorProto.FLOAT),
        nets.node("Sub", ["a", "b"], ["s"]),
        nets.node("Mul", ["s", "k"], ["y"]),
        nets.node("Div", ["b", "k"], ["z"]),
    ]
    model = nets.model(
        nodes,
        {"n": (np.uint8, ["N", 40]), "b": (np.float32, ["N", 40])},
        {"y": (np.float32, ["N", 40]), "z": (np.float32, ["N", 40])},
        {"k": nets.weights(40).reshape(1, 40)},
    )
    n = np.arange(ROWS * 40, dtype=np.uint8).reshape(ROWS, 40)
    return model, {"n": n, "b": nets.weights(ROWS * 40, 1).reshape(ROWS, 40)}


def eight_bits() -> tuple[onnx.ModelProto, Feed]:
    """A net of bytes: convolutions, one of them plane by plane, products; each rounding is of one float32 operation."""
    rng = np.random.default_rng(0)

    def signed(*shape: int) -> np.ndarray:
        return rng.integers(-127, 128, shape).astype(np.int8)

    half, zero, none = ["half", "seven"], "none", "third"
    nodes = [
        nets.node("QuantizeLinear", ["x", *half], ["q"]),
        nets.node("QLinearConv", ["q", *half, "planes", none, zero, "four", "seven"], ["p"], group=4, pads=[1] * 4),
        nets.node("QLinearConv", ["p", "four", "seven", "maps", "scales", zero, "four", "seven", "bias"], ["c"]),
        nets.node("Reshape", ["c", "flat"], ["f"]),
        nets.node("QLinearMatMul", ["f", "four", "seven", "w", none, zero, "two", zero], ["m"]),
        nets.node("DequantizeLinear", ["m", "two", zero], ["y"]),
        nets.node("MatMulInteger", ["f", "w", "seven", zero], ["z"]),
    ]
    constants = {
        "half": np.float32(0.05),
        "third": np.float32(0.02),
        "two": np.float32(1.5),
        "four": np.float32(0.4),
        "scales": rng.uniform(0.01, 0.03, 6).astype(np.float32),
        "seven": np.uint8(7),
        "none": np.int8(0),
        "planes": signed(4, 1, 3, 3),
        "maps": signed(6, 4, 3, 2),
        "bias": rng.integers(-999, 999, 6).astype(np.int32),
        "flat": np.array([0, -1]),
        "w": signed(6 * 6 * 8, 21),
    }
    outputs = {"y": (np.float32, ["N", 21]), "z": (np.int32, ["N", 21])}
    model = nets.model(nodes, {"x": (np.float32, ["N", 4, 8, 9])}, outputs, constants, opset=21)
    return model, {"x": nets.weights(ROWS * 4 * 72, 3).reshape(ROWS, 4, 8, 9) * 3}


def along_axes() -> tuple[onnx.ModelProto, Feed]:
    """Averages, resizing, reductions, the largest elements, activations."""
    nodes = [
        nets.node("InstanceNormalization", ["x", "scale", "bias"], ["i"]),
        nets.node("AveragePool", ["i"], ["a"], kernel_shape=[2, 3], pads=[0, 1, 0, 1]),
        nets.node("Resize", ["a", "", "twice"], ["r"], mode="linear"),
        nets.node("LeakyRelu", ["r"], ["l"]),
        nets.node("ReduceMean", ["l", "last"], ["m"], keepdims=0),
        nets.node("TopK", ["m", "four"], ["t", "k"]),
        nets.node("Erf", ["t"], ["e"]),
        nets.node("HardSigmoid", ["e"], ["h"]),
        nets.node("LogSoftmax", ["h"], ["y"]),
    ]
    constants = {
        "scale": nets.weights(3),
        "bias": nets.weights(3, 1),
        "twice": np.array([1, 1, 2, 1.5], np.float32),
        "last": np.array([3]),
        "four": np.array([4]),
    }
    outputs = {"y": (np.float32, ["N", 3, 4])}
    model = nets.model(nodes, {"x": (np.float32, ["N", 3, 8, 9])}, outputs, constants)
    return model, {"x": nets.weights(ROWS * 216, 3).reshape(ROWS, 3, 8, 9)}


SMALL: dict[str, tuple[Callable[[], tuple[onnx.ModelProto, Feed]], bool]] = {
    "cnn": (cnn, False),
    "embedding": (embedding, True),
    "narrow weights": (narrow_weights, False),
    "row by row": (row_by_row, False),
    "arithmetic": (arithmetic, True),
    "eight bits": (eight_bits, True),
    "along axes": (along_axes, False),
}
"""Each with whether its bits must be the same."""


def compare(path: Path, target: str, feed: Feed, folder: Path, exact: bool) -> None:
    """The program's outputs, row by row, and the engine's."""
    rows = [{name: array[r : r + 1] for name, array in feed.items()} for r in range(ROWS)]
    found, _ = program(path, target, folder).run(rows)
    with hashinfer.InferenceSession(path, threads=1) as session:
        for row, outputs in zip(rows, found, strict=True):
            for mine, theirs in zip(outputs, session.run(None, row), strict=True):
                if exact:
                    assert np.array_equal(mine, theirs.ravel())
                else:
                    scale = np.nanmax(np.abs(theirs), initial=1e-30)
                    np.testing.assert_allclose(mine, theirs.ravel(), rtol=0, atol=2e-5 * scale, equal_nan=True)


def here(target: str) -> str:
    """The target, or a skip that says what is missing."""
    missing = PLACES[target].missing()
    if missing:
        pytest.skip(f"{target}: {missing}")
    return target


@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models(name: str, target: str, tmp_path: Path) -> None:
    digits = np.load(MODELS / "mnist-test-1k.npy")[:ROWS]
    compare(MODELS / f"{name}.hnet", here(target), {"image": digits}, tmp_path / "program", exact=False)


@pytest.mark.parametrize("target", PLACES)
@pytest.mark.parametrize("name", SMALL)
def test_the_native_subset(name: str, target: str, tmp_path: Path) -> None:
    make, exact = SMALL[name]
    model, feed = make()
    path = tmp_path / "net.hnet"
    path.write_bytes(model.SerializeToString())
    compare(path, here(target), feed, tmp_path / "program", exact)


ENGINE = """
import sys
import numpy as np
import hashinfer
np.save(sys.argv[3], hashinfer.InferenceSession(sys.argv[1], threads=1)(np.load(sys.argv[2])[: int(sys.argv[4])]))
"""


def test_integers_are_the_same_bits_everywhere(tmp_path: Path) -> None:
    model, digits = MODELS / "mnist-dyadic-64x-int8.hnet", MODELS / "mnist-test-1k.npy"
    rows, out = 20, tmp_path / "engine.npy"
    feeds = [{"image": digit} for digit in np.load(digits)[:rows]]
    found, _ = program(model, here("cortex-m3"), tmp_path / "program").run(feeds)
    command = [sys.executable, "-c", ENGINE, str(model), str(digits), str(out), str(rows)]
    subprocess.run(command, check=True, env=unmeasured(HASHINFER_ISA="integer", HASHINFER_CACHE_DIR=""))
    assert np.array_equal(np.concatenate([outputs[0] for outputs in found]), np.load(out).ravel())


def test_every_preset_runs_somewhere() -> None:
    assert {target.name for target in PRESETS} == {"host", *PLACES}
