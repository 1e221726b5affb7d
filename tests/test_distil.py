"""Distilling: each op's PyTorch form against onnx's evaluator, what training reaches, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper
from onnx.reference import ReferenceEvaluator

torch = pytest.importorskip("torch", reason="the extra hashinfer[torch] is not installed")

from hashinfer import InferenceSession  # noqa: E402
from hashinfer.compress import Options, compress  # noqa: E402
from hashinfer.compress.distil import Distiller, Progress, Recipe  # noqa: E402
from hashinfer.compress.find import find  # noqa: E402
from hashinfer.compress.interpret import Net, softmax_source  # noqa: E402
from hashinfer.compress.prepare import prepared  # noqa: E402
from hashinfer.compress.torch_ops import OPS  # noqa: E402
from hashinfer.errors import InputError, UnsupportedError  # noqa: E402
from hashinfer.model.read import read_model  # noqa: E402
from hashinfer.schemes import Dyadic, Xxh32  # noqa: E402
from tests import nets  # noqa: E402
from tests.test_compress import MODELS, cnn, mlp, saved, tied  # noqa: E402

F32, I64 = np.float32, np.int64
COMMAND = (sys.executable, "-c", "from hashinfer.cli import main; main()")


def rand(*shape: int) -> np.ndarray:
    return nets.weights(int(np.prod(shape)), sum(shape)).reshape(shape)


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


X = rand(2, 3, 8, 6)
Case = tuple[str, list[np.ndarray | None], dict[str, Any]]
UNARY = (
    "Abs",
    "Neg",
    "Exp",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Relu",
    "Softplus",
    "Softsign",
    "HardSwish",
    "Mish",
    "Sin",
    "Cos",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "IsNaN",
    "Identity",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Shape",
    "Size",
    "LeakyRelu",
    "Elu",
    "Celu",
    "Selu",
    "Gelu",
    "HardSigmoid",
    "ThresholdedRelu",
    "Softmax",
    "LogSoftmax",
    "Flatten",
    "Transpose",
    "Dropout",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceSumSquare",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ArgMax",
    "ArgMin",
    "LpNormalization",
    "Trilu",
    "Squeeze",
)
A, B, BOOL = rand(4, 5), rand(3, 4, 5), rand(4, 5) > 0
CASES: list[Case] = [
    *((name, [X], {}) for name in UNARY),
    *((name, [np.abs(X) + 1], {}) for name in ("Log", "Sqrt", "Reciprocal")),
    *((name, [B, A], {}) for name in ("Add", "Sub", "Mul", "Div", "Equal", "Greater", "GreaterOrEqual", "Less")),
    ("LessOrEqual", [B, A], {}),
    *((name, [BOOL, ~BOOL], {}) for name in ("And", "Or", "Xor")),
    ("Not", [BOOL], {}),
    ("Div", [ints(7, -7, 9), ints(2, 2, -4)], {}),
    ("Mod", [ints(7, -7, 9), ints(3, 3, -4)], {}),
    ("Mod", [A, A + 3], {"fmod": 1}),
    ("Pow", [np.abs(A), np.array(1.5, F32)], {}),
    ("Min", [A, B, np.array(0.1, F32)], {}),
    ("Max", [A, B], {}),
    ("Sum", [A, B], {}),
    ("Mean", [A, A + 1], {}),
    ("Where", [BOOL, A, B], {}),
    ("Clip", [A, np.array(-0.5, F32), None], {}),
    ("Clip", [A, None, np.array(0.5, F32)], {}),
    ("PRelu", [X, rand(3, 1, 1)], {}),
    ("Gelu", [A], {"approximate": "tanh"}),
    ("Softmax", [B], {"axis": 1}),
    ("MatMul", [B, rand(5, 2)], {}),
    ("Gemm", [A, rand(5, 3), rand(3)], {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", [A.T.copy(), rand(3, 5)], {"transA": 1, "transB": 1}),
    ("Einsum", [B, rand(5, 2)], {"equation": "abc,cd->abd"}),
    ("Conv", [X, rand(4, 3, 3, 3), rand(4)], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [X, rand(6, 1, 3, 2)], {"group": 3, "dilations": [2, 1]}),
    ("Conv", [X, rand(4, 3, 3, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [X, rand(4, 3, 2, 4)], {"auto_pad": "SAME_LOWER"}),
    ("Conv", [rand(2, 3, 9), rand(4, 3, 3)], {"pads": [1, 1]}),
    ("MaxPool", [X], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1, "strides": [2, 2]}),
    ("BatchNormalization", [X, rand(3), rand(3), rand(3), np.abs(rand(3)) + 1], {"epsilon": 0.01}),
    ("InstanceNormalization", [X, rand(3), rand(3)], {}),
    ("GroupNormalization", [rand(2, 4, 5), rand(2), rand(2)], {"num_groups": 2}),
    ("LayerNormalization", [X, rand(8, 6), rand(8, 6)], {"axis": 2}),
    ("LayerNormalization", [X, rand(6)], {}),
    ("Reshape", [X, ints(0, -1, 4)], {}),
    ("Flatten", [X], {"axis": 2}),
    ("Transpose", [X], {"perm": [2, 0, 3, 1]}),
    ("Squeeze", [rand(1, 3, 1), ints(0, -1)], {}),
    ("Unsqueeze", [A, ints(0, -1)], {}),
    ("Concat", [B, rand(3, 2, 5)], {"axis": 1}),
    ("Split", [X, ints(2, 5, 1)], {"axis": 2, "outputs": 3}),
    ("Split", [X], {"axis": 2, "num_outputs": 3, "outputs": 3}),
    ("Slice", [X, ints(1, -3), ints(100, -1), ints(2, 3)], {}),
    ("Slice", [X, ints(-1, 4), ints(-100, 0), ints(2, 3), ints(-2, -1)], {}),
    ("Gather", [A, np.array([[0, -1], [2, 2]])], {}),
    ("Gather", [A, ints(1, 0)], {"axis": 1}),
    ("Gather", [A, np.array(2)], {"axis": -1}),
    ("GatherElements", [A, np.array([[0, -1, 2, 1, 0]])], {"axis": 0}),
    ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 1), np.array(0.5, F32)], {}),
    ("Pad", [X, ints(0, 0, 1, 2, 0, 0, 3, 1)], {"mode": "reflect"}),
    ("Pad", [X, ints(1, 2), None, ints(-1)], {"mode": "edge"}),
    ("Expand", [rand(4, 1), ints(3, 1, 5)], {}),
    ("Tile", [A, ints(2, 1)], {}),
    ("Cast", [A * 3], {"to": 7}),
    ("CastLike", [A, ints(1)], {}),
    ("ConstantOfShape", [ints(2, 3)], {"value": helper.make_tensor("v", 7, [1], [4])}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("Range", [np.array(1), np.array(9), np.array(3)], {}),
    ("Trilu", [A, np.array(1)], {"upper": 0}),
    ("CumSum", [A, np.array(1)], {}),
    ("Constant", [], {"value_floats": [1.0, 2.0]}),
    ("Constant", [], {"value": helper.make_tensor("v", 6, [2], [4, 5])}),
    ("Shape", [X], {"start": 1, "end": -1}),
    ("ReduceMean", [X, ints(1, -1)], {"keepdims": 0}),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    ("ArgMax", [A], {"axis": 1, "keepdims": 0}),
    ("DequantizeLinear", [np.array([[1, -3], [9, 4]], np.int8), np.array(0.5, F32), np.array(2, np.int8)], {}),
    ("DequantizeLinear", [np.array([[1, 3], [9, 4]], np.uint8), rand(2), np.array([1, 2], np.uint8)], {"axis": 0}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}{''.join(f'-{k}={v}' for k, v in c[2].items())}"[:60])
def test_op_is_the_standards(case):
    op, arrays, attributes = case
    attributes = dict(attributes)
    outputs = [f"y{k}" for k in range(attributes.pop("outputs", 1))]
    names = [f"x{k}" if a is not None else "" for k, a in enumerate(arrays)]
    feed = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    model = nets.model(
        [nets.node(op, names, outputs, **attributes)],
        {n: (a.dtype, a.shape) for n, a in feed.items()},
        dict.fromkeys(outputs, (F32, None)),
        {},
    )
    graph = read_model(model.SerializeToString()).graph
    expected = ReferenceEvaluator(model).run(None, feed)
    found = Net(graph)({n: torch.from_numpy(np.array(a)) for n, a in feed.items()}, outputs)
    for y, wanted in zip(found, expected, strict=True):
        assert y.numpy().dtype == np.asarray(wanted).dtype
        np.testing.assert_allclose(y.numpy(), wanted, rtol=2e-5, atol=2e-5)


def test_every_op_has_a_case():
    assert set(OPS) - {c[0] for c in CASES} <= {"RMSNormalization"}


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "message"),
    [
        ("LRN", 1, {"size": 3}, "the op LRN has no form for training here"),
        ("MaxPool", 1, {"kernel_shape": [2, 2], "ceil_mode": 1}, "ceil_mode has no form"),
        ("Pad", 2, {"mode": "wrap"}, "mode 'wrap' has no form"),
    ],
)
def test_what_cannot_be_turned_is_said_before_any_work(op, inputs, attributes, message, tmp_path):
    names = ["r", "pads"][:inputs]
    model = nets.model(
        [
            nets.node("MatMul", ["x", "w"], ["r"]),
            nets.node(op, names, ["p"], "odd", **attributes),
            nets.node("Relu", ["p"], ["y"]),
        ],
        {"x": (F32, ["N", 2, 6, 40])},
        {"y": (F32, None)},
        {"w": rand(40, 40), "pads": ints(0, 0, 1, 1, 0, 0, 1, 1)},
    )
    with pytest.raises(UnsupportedError, match=rf"cannot be distilled: {op} node 'odd': {message}"):
        compress(saved(model, tmp_path), tmp_path / "out.hnet", Options(ratio=4), {"x": rand(8, 2, 6, 40)})
    assert not (tmp_path / "out.hnet").exists()
    compress(saved(model, tmp_path), tmp_path / "out.hnet", Options(ratio=4))


# Hashed weights in the interpreter.


@pytest.mark.parametrize("scheme", ["dyadic", "xxh32"])
@pytest.mark.parametrize("name", MODELS)
def test_net_with_hashed_weights_is_the_dense_net_of_their_w(name, scheme):
    ready = prepared(MODELS[name](), int8=False)
    weights, _ = find(ready.graph)
    graph = read_model(ready.SerializeToString()).graph
    kinds = {w.name: Xxh32 if scheme == "xxh32" or w.form == "table" else Dyadic for w in weights}
    schemes = {w.name: kinds[w.name].fit(w.rows, w.cols, w.size // 4, 3) for w in weights}
    net = Net(graph, weights, schemes, trainable=True)
    values = {w.name: nets.weights(schemes[w.name].buckets, 1) / np.float32(5) for w in weights}
    net.load(values)
    dense = dict(graph.initializers)
    for w in weights:
        dense[w.name] = nets.stored(w, schemes[w.name].expand(values[w.name]))
    twin = Net(graph)
    for key, array in dense.items():
        if key in twin.values:
            twin.values[key] = torch.from_numpy(np.array(array)).requires_grad_(key in schemes)
    feed = {v.name: sample(name, 5) for v in graph.inputs}
    feed = {k: torch.from_numpy(v) for k, v in feed.items()}
    outputs = [v.name for v in graph.outputs]
    found, expected = net(feed, outputs)[0], twin(feed, outputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.square().sum().backward()
    expected.square().sum().backward()
    for w in weights:
        bucket, sign = schemes[w.name].table()
        matrix = w.matrix(twin.values[w.name].grad.numpy())
        grad = np.bincount(bucket.ravel(), (matrix * sign).ravel(), schemes[w.name].buckets)
        np.testing.assert_allclose(net.values[w.name].grad, grad, rtol=1e-3, atol=1e-3 * np.abs(grad).max())


def sample(name: str, rows: int) -> np.ndarray:
    if name == "tied":
        return np.random.default_rng(0).integers(0, 60, (rows, 7))
    return rand(rows, *{"mlp": (48,), "cnn": (3, 9, 9), "turned": (8, 10)}[name])


def test_masks_and_constants_are_not_trained():
    model = nets.model(
        [
            nets.node("MatMul", ["x", "w"], ["h"]),
            nets.node("Add", ["h", "bias"], ["b"]),
            nets.node("Add", ["b", "mask"], ["m"]),
            nets.node("Mul", ["m", "ones"], ["o"]),
            nets.node("Sub", ["o", "shift"], ["y"]),
        ],
        {"x": (F32, ["N", 4])},
        {"y": (F32, ["N", 3])},
        {
            "w": rand(4, 3),
            "bias": rand(3),
            "mask": np.array([0, -1e9, 0], F32),
            "ones": np.array([1, 0, 1], F32),
            "shift": rand(3),
        },
    )
    net = Net(read_model(model.SerializeToString()).graph, trainable=True)
    assert set(net.trained()) == {"w", "bias"}


# Training.


def teacher() -> ModelProto:
    """An mlp whose hidden weights are not far from hashed ones, so that a hashed net can learn its answers."""
    model = mlp(32, 64, 6)
    for tensor in model.graph.initializer:
        if tensor.name == "w1":
            scheme = Dyadic.fit(32, 64, 512, 99)
            w = scheme.expand(nets.weights(512, 3)).T / np.float32(5)
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(w), "w1"))
    return model


@pytest.mark.parametrize("stored", ["float32", "int8"])
@pytest.mark.parametrize("scheme", ["dyadic", "xxh32"])
def test_training_beats_least_squares(scheme, stored, tmp_path):
    source, x = saved(teacher(), tmp_path), rand(3000, 32)
    options = Options(ratio=4, scheme=scheme, stored=stored, epochs=25, batch=64, rate=1e-2)
    seen: list[Progress] = []
    plain = compress(source, tmp_path / "plain.hnet", Options(ratio=4, scheme=scheme, stored=stored))
    report = compress(source, tmp_path / "out.hnet", options, {"x": x}, seen.append)
    t = report.training
    assert t["epochs"] == 25
    assert t["agreement"] > t["agreement_before"] + 0.2
    assert t["agreement"] > 0.7
    assert report.output_error < 0.6
    assert plain.output_error > 0.75
    assert report.output_error == pytest.approx(t["error"], rel=0.3)
    assert seen[-1].step == seen[-1].steps == 25 * (2700 // 64)
    assert seen[-1].agreement == t["agreement"]
    assert report.numbers[1] <= report.allowed
    ours = InferenceSession(tmp_path / "out.hnet")(x)
    dense = InferenceSession(source)(x)
    assert float((ours.argmax(1) == dense.argmax(1)).mean()) > 0.7
    expected = ReferenceEvaluator(onnx.load(tmp_path / "out.hnet")).run(None, {"x": x})[0]
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


def test_training_is_repeatable(tmp_path):
    source = saved(teacher(), tmp_path)
    files = []
    for k in range(2):
        compress(source, tmp_path / f"{k}.hnet", Options(ratio=4, epochs=2, seed=3), {"x": rand(300, 32)})
        files.append((tmp_path / f"{k}.hnet").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("make", [cnn, tied])
def test_convolutions_and_tables_train(make, tmp_path):
    name = make.__name__
    feed = {"ids" if name == "tied" else "x": sample(name, 400)}
    report = compress(
        saved(make(), tmp_path), tmp_path / "out.hnet", Options(ratio=4, epochs=15, batch=32, rate=1e-2), feed
    )
    assert report.training["error"] < 0.8 * report.training["error_before"]


def test_softmax_is_taught_before_it(tmp_path):
    model = nets.model(
        [nets.node("MatMul", ["x", "w"], ["l"]), nets.node("Softmax", ["l"], ["y"])],
        {"x": (F32, ["N", 32])},
        {"y": (F32, ["N", 40])},
        {"w": rand(32, 40)},
    )
    graph = read_model(model.SerializeToString()).graph
    assert softmax_source(graph, "y") == "l"
    assert softmax_source(graph, "l") is None
    distiller = Distiller(Net(graph), Net(graph, trainable=True), {"x": rand(200, 32)}, Recipe())
    assert distiller.names == ["l"]
    report = compress(saved(model, tmp_path), tmp_path / "out.hnet", Options(ratio=2, epochs=3), {"x": rand(200, 32)})
    assert report.training["error"] <= report.training["error_before"]


def test_a_fixed_batch_is_kept_to(tmp_path):
    model = mlp(32, 64, 6)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 8
    report = compress(saved(model, tmp_path), tmp_path / "out.hnet", Options(ratio=4, epochs=3), {"x": rand(100, 32)})
    assert report.training["held_out_rows"] == 8
    assert report.measured_on == "8 rows of the data"
    with pytest.raises(InputError, match="7 rows; expected at least 8"):
        compress(saved(model, tmp_path), tmp_path / "out.hnet", Options(ratio=4), {"x": rand(7, 32)})


def test_outputs_without_rows_are_refused(tmp_path):
    model = nets.model(
        [nets.node("MatMul", ["x", "w"], ["l"]), nets.node("ReduceMean", ["l"], ["y"])],
        {"x": (F32, ["N", 32])},
        {"y": (F32, None)},
        {"w": rand(32, 40)},
    )
    with pytest.raises(UnsupportedError, match=r"'y' has shape \[1, 1\] for 20 rows of input, not one for each"):
        compress(saved(model, tmp_path), tmp_path / "out.hnet", Options(ratio=2, epochs=3), {"x": rand(200, 32)})


def test_a_training_that_diverges_keeps_the_best_before(tmp_path):
    source = saved(teacher(), tmp_path)
    options = Options(ratio=4, epochs=3, rate=1e38)
    report = compress(source, tmp_path / "out.hnet", options, {"x": rand(1000, 32)})
    assert any("the training diverged" in note for note in report.notes)
    assert report.output_error < 1.01


@pytest.mark.parametrize("name", ["mlp", "cnn", "block"])
def test_nets_from_pytorch(name, tmp_path):
    pytest.importorskip("onnxscript")
    import hashinfer.torch as ht
    from tests.test_torch_training import ROUND_TRIPS

    torch.manual_seed(0)
    make, inputs = ROUND_TRIPS[name]
    ht.save(make().eval(), inputs(2), tmp_path / "dense.onnx", input_names=["x"], output_names=["y"])
    options = Options(ratio=4, epochs=10, batch=32)
    report = compress(tmp_path / "dense.onnx", tmp_path / "out.hnet", options, {"x": inputs(400).numpy()})
    assert sum(layer.scheme is not None for layer in report.layers) >= 2
    assert report.training["error"] < 0.9 * report.training["error_before"]
    assert report.output_error == pytest.approx(report.training["error"], rel=0.3)


def test_an_interrupt_keeps_the_best_so_far(tmp_path):
    def told(now: Progress) -> None:
        if now.epoch == 3:
            raise KeyboardInterrupt

    source = saved(teacher(), tmp_path)
    options = Options(ratio=4, epochs=50, batch=64, rate=1e-2)
    report = compress(source, tmp_path / "out.hnet", options, {"x": rand(1000, 32)}, told)
    assert report.interrupted
    assert report.training["epochs"] == 3
    assert report.training["agreement"] > report.training["agreement_before"]
    assert report.output_error < 1
    assert InferenceSession(tmp_path / "out.hnet")(rand(2, 32)).shape == (2, 6)


# The command.


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def test_command_distils_and_says_so(tmp_path):
    np.savez(tmp_path / "x.npz", x=rand(600, 32))
    arguments = ["compress", saved(teacher(), tmp_path), "-o", tmp_path / "out.hnet", "--ratio", 4, "--threads", 1]
    arguments += ["--data", tmp_path / "x.npz", "--epochs", 12, "--batch", 64, "--rate", "0.01"]
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert "training done: 12 epochs" in done.stdout
    assert "held-out rows" in done.stdout
    assert "epoch 12 of 12" in done.stderr
    done = subprocess.run(
        [*COMMAND, *map(str, arguments), "--json"], capture_output=True, text=True, check=False, env=environment()
    )
    data = json.loads(done.stdout)
    assert data["training"]["agreement"] > data["training"]["agreement_before"]
    assert data["interrupted"] is False


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (rand(50, 31), "expected float32['any', 32]"),
        (rand(50, 32).astype(np.float64), "float64[50, 32]; expected float32"),
        (np.where(np.arange(1600).reshape(50, 32) == 70, np.nan, rand(50, 32)).astype(F32), "infinity in row 2"),
        (rand(1, 32), "1 rows; expected at least 2"),
    ],
)
def test_command_refuses_data_that_does_not_fit(array, message, tmp_path):
    np.save(tmp_path / "x.npy", array)
    source = saved(teacher(), tmp_path)
    arguments = ["compress", source, "-o", tmp_path / "out.hnet", "--data", tmp_path / "x.npy"]
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.hnet").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_writes_the_best_so_far(tmp_path: Path):
    np.save(tmp_path / "x.npy", rand(2000, 32))
    source, out = saved(teacher(), tmp_path), tmp_path / "out.hnet"
    arguments = ["compress", source, "-o", out, "--ratio", 4, "--data", tmp_path / "x.npy", "--epochs", 100_000]
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        # A runner in the background may ignore the signal, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        # There is nothing to read from before the end: the training begins once everything is imported.
        time.sleep(20)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    report = json.loads(text)
    assert report["interrupted"] is True
    assert report["training"]["epochs"] > 0
    assert InferenceSession(out)(rand(2, 32)).shape == (2, 6)
