"""`compress`: which weights are hashed, within what budget, to which file; and the command as a user meets it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hashinfer import InferenceSession
from hashinfer.compress import Options, compress
from hashinfer.compress.budget import SMALL_SHARE, Wish, allocate, scheme_for
from hashinfer.compress.data import checked, random_feed
from hashinfer.compress.find import Weight, chosen, find
from hashinfer.compress.fit import least_squares
from hashinfer.compress.prepare import float_numbers, prepared
from hashinfer.errors import HashinferError, InputError, ModelError, UnsupportedError
from hashinfer.model.read import read_model
from hashinfer.schemes import Dyadic, Xxh32
from tests import nets

F32 = np.float32
COMMAND = (sys.executable, "-c", "from hashinfer.cli import main; main()")


def matrix(*shape: int, seed: int = 0) -> np.ndarray:
    return nets.weights(int(np.prod(shape)), seed + sum(shape)).reshape(shape) / np.float32(np.sqrt(shape[0]))


def mlp(first: int = 48, hidden: int = 96, last: int = 10, opset: int = 20) -> ModelProto:
    """Gemm with transB, Relu, MatMul and Add: x [N, first] -> y [N, last]."""
    return nets.model(
        [
            nets.node("Gemm", ["x", "w1", "b1"], ["h"], "hidden", transB=1),
            nets.node("Relu", ["h"], ["r"]),
            nets.node("MatMul", ["r", "w2"], ["m"], "out"),
            nets.node("Add", ["m", "b2"], ["y"]),
        ],
        {"x": (F32, ["N", first])},
        {"y": (F32, ["N", last])},
        {"w1": matrix(hidden, first), "b1": matrix(hidden), "w2": matrix(hidden, last), "b2": matrix(last)},
        opset=opset,
    )


def cnn() -> ModelProto:
    """Conv, Relu, Conv with groups, a mean over pixels, MatMul: x [N, 3, 9, 9] -> y [N, 5]."""
    return nets.model(
        [
            nets.node("Conv", ["x", "k1", "c1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
            nets.node("Relu", ["a"], ["ra"]),
            nets.node("Conv", ["ra", "k2"], ["b"], "conv2", group=2, strides=[2, 2]),
            nets.node("GlobalAveragePool", ["b"], ["p"]),
            nets.node("Flatten", ["p"], ["f"]),
            nets.node("MatMul", ["f", "w"], ["y"], "head"),
        ],
        {"x": (F32, ["N", 3, 9, 9])},
        {"y": (F32, ["N", 5])},
        {"k1": matrix(16, 3, 3, 3), "c1": matrix(16), "k2": matrix(32, 8, 3, 3), "w": matrix(32, 5)},
    )


def tied() -> ModelProto:
    """A table that is looked up, and, turned, the last product: ids [N, T] -> y [N, T, 60]."""
    return nets.model(
        [
            nets.node("Gather", ["table", "ids"], ["e"], "lookup"),
            nets.node("MatMul", ["e", "w"], ["h"], "middle"),
            nets.node("Tanh", ["h"], ["t"]),
            nets.node("Transpose", ["table"], ["turned"], perm=[1, 0]),
            nets.node("MatMul", ["t", "turned"], ["y"], "head"),
        ],
        {"ids": (np.int64, ["N", "T"])},
        {"y": (F32, ["N", "T", 60])},
        {"table": matrix(60, 24), "w": matrix(24, 24)},
    )


def turned() -> ModelProto:
    """A Conv of one dimension, and a weight that is turned for a MatMul and read with transB by a Gemm."""
    return nets.model(
        [
            nets.node("Conv", ["x", "k"], ["c"], "conv"),
            nets.node("Flatten", ["c"], ["f"]),
            nets.node("Transpose", ["w"], ["wt"], perm=[1, 0]),
            nets.node("MatMul", ["f", "wt"], ["m"], "product"),
            nets.node("Gemm", ["f", "w"], ["g"], "gemm", transB=1, alpha=0.5),
            nets.node("Add", ["m", "g"], ["y"]),
        ],
        {"x": (F32, ["N", 8, 10])},
        {"y": (F32, ["N", 30])},
        {"k": matrix(12, 8, 3), "w": matrix(30, 96)},
    )


MODELS = {"mlp": mlp, "cnn": cnn, "tied": tied, "turned": turned}


def saved(model: ModelProto, folder: Path, name: str = "dense.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def forms(model: ModelProto) -> dict[str, str]:
    return {w.name: w.form for w in find(prepared(model, int8=False).graph)[0]}


# Finding weights.


def test_weights_and_their_forms():
    assert forms(mlp()) == {"w1": "transposed", "w2": "plain"}
    assert forms(cnn()) == {"k1": "conv", "k2": "conv", "w": "plain"}
    assert forms(tied()) == {"table": "table", "w": "plain"}
    assert forms(turned()) == {"k": "conv", "w": "transposed"}
    weights = {w.name: w for w in find(prepared(cnn(), int8=False).graph)[0]}
    assert (weights["k2"].rows, weights["k2"].cols) == (72, 32)
    stored = nets.weights(16 * 27).reshape(16, 3, 3, 3)
    assert np.array_equal(nets.stored(weights["k1"], weights["k1"].matrix(stored)), stored)


def test_constants_and_identities_are_seen_through():
    model = mlp()
    w1 = next(t for t in model.graph.initializer if t.name == "w1")
    value = onnx.TensorProto()
    value.CopyFrom(w1)
    model.graph.initializer.remove(w1)
    nodes = [helper.make_node("Constant", [], ["raw"], value=value), nets.node("Identity", ["raw"], ["w1"])]
    rest = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)
    assert forms(model) == {"raw": "transposed", "w2": "plain"}


def passed(nodes: list[Any], constants: dict[str, np.ndarray], **more: Any) -> dict[str, str]:
    made = nets.model(
        [*nodes, nets.node("Identity", ["x"], ["y"])], {"x": (F32, [4, 4])}, {"y": (F32, None), **more}, constants
    )
    return {p.name: p.reason for p in find(prepared(made, int8=False).graph)[1]}


def test_what_stays_dense_says_why():
    w = matrix(4, 4)
    assert "left operand of MatMul node 'MatMul_a'" in passed([nets.node("MatMul", ["w", "x"], ["a"])], {"w": w})["w"]
    assert "stack of matrices" in passed([nets.node("MatMul", ["x", "w"], ["a"])], {"w": matrix(2, 4, 4)})["w"]
    assert (
        "no table of rows" in passed([nets.node("Gather", ["w", "i"], ["a"], axis=1)], {"w": w, "i": np.array(1)})["w"]
    )
    both = [nets.node("MatMul", ["x", "w"], ["a"]), nets.node("Mul", ["w", "x"], ["b"])]
    assert "also an input of Mul node 'Mul_b'" in passed(both, {"w": w})["w"]
    double = [nets.node("Cast", ["x"], ["xd"], to=11), nets.node("MatMul", ["xd", "w"], ["a"])]
    assert "its numbers are double" in passed(double, {"w": w.astype(np.float64)})["w"]
    out = passed([nets.node("MatMul", ["x", "w"], ["a"])], {"w": w}, w=(F32, [4, 4]))
    assert out["w"] == "it is an output of the model"


def branching() -> ModelProto:
    """An If whose branches have a weight each, before a MatMul in the open."""

    def branch(name: str, seed: int) -> onnx.GraphProto:
        nodes = [helper.make_node("MatMul", ["x", f"inner{name}"], [f"o{name}"], name=f"m{name}")]
        out = [helper.make_tensor_value_info(f"o{name}", 1, ["N", 32])]
        return helper.make_graph(
            nodes, name, [], out, [numpy_helper.from_array(matrix(32, 32, seed=seed), f"inner{name}")]
        )

    return nets.model(
        [
            nets.node("ReduceSum", ["x"], ["s"], keepdims=0),
            nets.node("Greater", ["s", "zero"], ["c"]),
            helper.make_node("If", ["c"], ["h"], name="choice", then_branch=branch("a", 1), else_branch=branch("b", 2)),
            nets.node("MatMul", ["h", "w"], ["y"], "open"),
        ],
        {"x": (F32, ["N", 32])},
        {"y": (F32, ["N", 40])},
        {"w": matrix(32, 40), "zero": np.array(0, F32)},
    )


def test_subgraphs_are_left_alone(tmp_path):
    report = compress(saved(branching(), tmp_path), tmp_path / "out.hnet", Options(ratio=2, layers=("open",)))
    done = {layer.weight: layer.done for layer in report.layers}
    assert done["w"] == "hashed"
    assert "inside a subgraph of If node 'choice'" in done["innera"]
    assert report.numbers[0] == 3 * 1024 + 256
    x = nets.weights(3 * 32).reshape(3, 32)
    expected = ReferenceEvaluator(onnx.load(tmp_path / "out.hnet")).run(None, {"x": x})[0]
    np.testing.assert_allclose(InferenceSession(tmp_path / "out.hnet")(x), expected, rtol=1e-4, atol=1e-5)


def test_patterns_choose():
    weights, others = find(prepared(mlp(), int8=False).graph)
    assert [w.name for w in chosen(weights, others, ["hid*"])] == ["w1"]
    assert [w.name for w in chosen(weights, others, ["w2", "w*"])] == ["w1", "w2"]
    with pytest.raises(InputError, match="'conv\\*' matches no weight or node; there are 'w1', 'hidden', 'w2', 'out'"):
        chosen(weights, others, ["conv*"])
    weights, others = find(prepared(branching(), int8=False).graph)
    with pytest.raises(InputError, match="'innera' cannot be hashed: it lies inside a subgraph"):
        chosen(weights, others, ["innera"])


def test_functions_are_inlined_and_old_opsets_converted(tmp_path):
    layer = helper.make_function(
        "mine",
        "Layer",
        ["a", "w"],
        ["b"],
        [helper.make_node("MatMul", ["a", "w"], ["b"], name="inner")],
        [helper.make_opsetid("", 20)],
    )
    made = nets.model(
        [helper.make_node("Layer", ["x", "w"], ["y"], domain="mine", name="call")],
        {"x": (F32, ["N", 40])},
        {"y": (F32, ["N", 50])},
        {"w": matrix(40, 50)},
        functions=[layer],
        imports={"mine": 1},
    )
    report = compress(saved(made, tmp_path), tmp_path / "out.hnet", Options(ratio=4))
    assert report.output_error is not None
    assert [layer.done for layer in report.layers] == ["hashed"]
    old = mlp(opset=11)
    old.ir_version = 3
    old.graph.input.extend(helper.make_tensor_value_info(t.name, 1, list(t.dims)) for t in old.graph.initializer)
    del old.opset_import[:]
    old.opset_import.append(helper.make_opsetid("", 11))
    compress(saved(old, tmp_path), tmp_path / "out.hnet", Options(ratio=4))
    model = onnx.load(tmp_path / "out.hnet")
    assert [v.name for v in model.graph.input] == ["x"]
    assert {o.domain: o.version for o in model.opset_import} == {"": 18, "ai.hashinfer": 1}


# The budget.


def weight(name: str, rows: int, cols: int, form: str = "plain") -> Weight:
    return Weight(name, form, (rows, cols), ())


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 900), st.integers(1, 900)), min_size=1, max_size=5),
    others=st.integers(0, 20_000),
    ratio=st.floats(1.1, 500),
    scheme=st.sampled_from(["dyadic", "xxh32"]),
    table=st.booleans(),
)
def test_budget_is_kept(sizes: list[tuple[int, int]], others: int, ratio: float, scheme: str, table: bool) -> None:
    weights = [weight(f"w{k}", *s, "table" if table and k == 0 else "plain") for k, s in enumerate(sizes)]
    total = others + sum(w.size for w in weights)
    if sum(w.size for w in weights) / ratio < len(weights):
        return
    budget = allocate(weights, total, ratio, Wish(scheme), all_layers=True)
    stored = others + sum(w.size for w in weights if w.name in budget.dense)
    stored += sum(s.buckets for s in budget.schemes.values())
    assert stored == budget.numbers
    assert budget.allowed == math.floor(total / ratio)
    assert budget.note is not None or stored <= budget.allowed
    assert set(budget.schemes) | set(budget.dense) == {w.name for w in weights}
    assert not set(budget.schemes) & set(budget.dense)
    seeds = [s.seed for s in budget.schemes.values()]
    assert len(set(seeds)) == len(seeds)
    for w in weights:
        if w.name in budget.schemes:
            s = budget.schemes[w.name]
            assert (s.rows, s.cols) == (w.rows, w.cols)
            assert isinstance(s, Xxh32) == (scheme == "xxh32" or w.form == "table")


def test_mnist_net_within_the_papers_budget():
    weights = [weight("hidden", 784, 1000), weight("out", 1000, 10)]
    budget = allocate(weights, 795_010, 64, Wish(), all_layers=True)
    assert budget.allowed == 12_422
    assert {n: s.buckets for n, s in budget.schemes.items()} == {"hidden": 10_240, "out": 1024}
    assert budget.numbers == 12_274
    with_note = allocate(weights, 795_010 + 20_000, 64, Wish(), all_layers=True)
    assert "each hashed weight is compressed by 64 instead" in str(with_note.note)
    assert sum(s.buckets for s in with_note.schemes.values()) <= 794_000 // 64
    alone = allocate(weights[:1], 795_010 + 20_000, 64, Wish(), all_layers=False)
    assert (alone.allowed, alone.note) == (None, None)
    assert alone.schemes["hidden"].buckets == 11 * 1024


def test_small_weights_stay_dense_unless_chosen():
    weights = [weight("large", 512, 512), weight("small", 16, 8)]
    budget = allocate(weights, 512 * 512 + 128, 64, Wish(), all_layers=True)
    assert "too small to gain" in budget.dense["small"]
    assert SMALL_SHARE * budget.allowed >= 128
    assert not allocate(weights, 512 * 512 + 128, 64, Wish(), all_layers=False).dense


# Fitting.


@pytest.mark.parametrize("scheme", [Dyadic.fit(20, 13, 64, 3), Xxh32(17, 20, 13, 4), Xxh32(30, 20, 13, 4, 5)], ids=str)
def test_least_squares_is_that(scheme):
    dense = nets.weights(260).reshape(20, 13).astype(np.float64)
    bucket, sign = scheme.table()
    design = np.zeros((260, scheme.buckets))
    design[np.arange(260), bucket.ravel()] = sign.ravel()
    best = np.linalg.lstsq(design, dense.ravel(), rcond=None)[0]
    w, error = least_squares(dense, scheme)
    np.testing.assert_allclose(w, best, rtol=1e-5, atol=1e-6)
    missed = np.linalg.norm(scheme.expand(w.astype(np.float64)) - dense) / np.linalg.norm(dense)
    assert error == pytest.approx(missed, rel=1e-5)
    assert least_squares(np.zeros((20, 13)), scheme)[1] == 0


# Whole models.


def hashed_already(model: ModelProto, ratio: float, wish: Wish) -> ModelProto:
    """The model with weights that the schemes which will be chosen hold exactly."""
    ready = prepared(model, int8=False)
    weights, _ = find(ready.graph)
    budget = allocate(weights, float_numbers(ready.graph), ratio, wish, all_layers=True)
    tensors = {t.name: t for t in model.graph.initializer}
    for w in weights:
        if w.name in budget.schemes:
            scheme = budget.schemes[w.name]
            exact = scheme.expand(nets.weights(scheme.buckets, 5) / np.float32(8))
            tensors[w.name].CopyFrom(numpy_helper.from_array(nets.stored(w, exact), w.name))
    return model


@pytest.mark.parametrize("scheme", ["dyadic", "xxh32"])
@pytest.mark.parametrize("name", MODELS)
def test_a_net_that_is_hashed_already_survives(name, scheme, tmp_path):
    ratio, wish = 5.0, Wish(scheme, 1, 7)
    dense = hashed_already(MODELS[name](), ratio, wish)
    path = tmp_path / "out.hnet"
    report = compress(saved(dense, tmp_path), path, Options(ratio=ratio, scheme=scheme, seed=7))
    assert all(layer.error < 1e-3 for layer in report.layers if layer.scheme is not None)
    assert sum(layer.scheme is not None for layer in report.layers) >= 2
    assert report.output_error < 1e-5
    feed = random_feed(read_model(dense.SerializeToString()).graph, 3)
    expected = ReferenceEvaluator(dense).run(None, feed)[0]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    for found in (
        InferenceSession(path).run(None, feed)[0],
        ReferenceEvaluator(model).run(None, feed)[0],
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0],
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert InferenceSession(path).report()["model"]["stored_numbers"] <= report.numbers[1] + 16
    assert report.numbers[1] <= report.allowed


@pytest.mark.parametrize("stored", ["float16", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_smaller_weight_vectors(name, stored, tmp_path):
    path, full = tmp_path / "out.hnet", tmp_path / "full.hnet"
    source = saved(MODELS[name](), tmp_path)
    compress(source, full, Options(ratio=3))
    compress(source, path, Options(ratio=3, stored=stored))
    model = onnx.load(path)
    kinds = {t.data_type for t in model.graph.initializer if t.name.endswith("_vector")}
    assert kinds == {onnx.TensorProto.FLOAT16 if stored == "float16" else onnx.TensorProto.INT8}
    feed = random_feed(read_model(full).graph, 3)
    expected, ours = InferenceSession(full).run(None, feed)[0], InferenceSession(path).run(None, feed)[0]
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feed)[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    most = 0.003 if stored == "float16" else 0.06
    assert np.linalg.norm(ours - expected) < most * np.linalg.norm(expected)


def test_engine_fuses_every_hashed_weight(tmp_path):
    for name, make in MODELS.items():
        report = compress(saved(make(), tmp_path), tmp_path / "out.hnet", Options(ratio=4))
        found = InferenceSession(tmp_path / "out.hnet").report()
        hashed = [step for step in found["steps"] if "hashed" in step]
        uses = sum(len(layer.nodes) for layer in report.layers if layer.scheme is not None)
        assert len(hashed) == uses, name
        assert all("+" in step["op"] for step in hashed), name


def test_auto_ratio_keeps_the_error(tmp_path):
    source = saved(mlp(), tmp_path)
    found = {}
    for most in (0.45, 0.6, 0.9):
        report = compress(source, tmp_path / "out.hnet", Options(ratio=None, max_error=most))
        assert report.output_error <= most
        found[most] = report.ratio
    assert 1 <= found[0.45] < found[0.6] < found[0.9]
    with pytest.raises(InputError, match=r"no ratio keeps the outputs' relative error within 0\.001"):
        compress(source, tmp_path / "no.hnet", Options(ratio=None, max_error=0.001, scheme="xxh32"))
    assert not (tmp_path / "no.hnet").exists()


def test_report_adds_up(tmp_path):
    source = saved(cnn(), tmp_path)
    report = compress(source, tmp_path / "out.hnet", Options(ratio=8)).as_dict()
    assert report["dense_numbers"] == 16 * 27 + 16 + 32 * 72 + 160
    assert report["stored_numbers"] <= report["allowed_numbers"] == report["dense_numbers"] // 8
    assert sum(layer["stored_numbers"] for layer in report["layers"]) + 16 == report["stored_numbers"]
    assert report["file_bytes"] == (tmp_path / "out.hnet").stat().st_size
    assert report["training"] is None


def test_nothing_to_hash(tmp_path):
    plain = nets.model([nets.node("Relu", ["x"], ["y"])], {"x": (F32, ["N", 4])}, {"y": (F32, ["N", 4])}, {})
    with pytest.raises(InputError, match="no float32 weight of a MatMul, Gemm, Conv or Gather"):
        compress(saved(plain, tmp_path), tmp_path / "out.hnet", Options())
    with pytest.raises(InputError, match="expected a smaller ratio"):
        compress(saved(mlp(8, 8, 8), tmp_path), tmp_path / "out.hnet", Options(ratio=1000))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0}, "the ratio is 0; expected a number above 1"),
        ({"ratio": 1}, "the ratio is 1"),
        ({"ratio": float("nan")}, "the ratio is nan"),
        ({"ratio": None, "max_error": 0}, "the error to keep is 0"),
        ({"max_error": 0.1}, "a ratio and an error"),
        ({"scheme": "md5"}, "scheme 'md5'"),
        ({"stored": "int4"}, "the weights are 'int4'"),
        ({"seed": -1}, "the seed is -1"),
        ({"block": 0}, "the block is 0"),
        ({"epochs": 0}, "the epochs is 0"),
        ({"rate": -1.0}, "the learning rate is -1"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(HashinferError, match=message):
        Options(**options)


def test_block_without_xxh32(tmp_path):
    with pytest.raises(InputError, match="the block is 4 with scheme 'dyadic'"):
        compress(saved(mlp(), tmp_path), tmp_path / "out.hnet", Options(ratio=4, block=4))
    report = compress(saved(mlp(), tmp_path), tmp_path / "out.hnet", Options(ratio=4, block=4, scheme="xxh32"))
    assert {layer.scheme.block for layer in report.layers if layer.scheme} == {4}


# Data.


def test_data_is_checked():
    inputs = read_model(mlp(8, 8, 8).SerializeToString()).graph.inputs
    good = nets.weights(40).reshape(5, 8)
    assert checked({"x": good}, inputs)["x"] is good
    bad = good.copy()
    bad[3, 1] = np.nan
    for data, message in (
        ({}, "no array for input 'x'"),
        ({"x": good[:, :7]}, r"float32\[5, 7\]; expected float32\['any', 8\]"),
        ({"x": good.astype(np.float64)}, r"float64\[5, 8\]; expected float32"),
        ({"x": good[0]}, r"float32\[8\]"),
        ({"x": bad}, "a NaN or an infinity in row 3"),
        ({"x": good[:1]}, "1 rows; expected at least 2"),
        ({"x": np.float32(3)}, r"float32\[\]"),
    ):
        with pytest.raises(InputError, match=message):
            checked(data, inputs)


def test_random_inputs_stay_inside_tables():
    feed = random_feed(read_model(tied().SerializeToString()).graph, 0)
    assert feed["ids"].shape == (16, 8)
    assert 0 <= feed["ids"].min() <= feed["ids"].max() < 60
    assert len(np.unique(feed["ids"])) > 20


def test_scheme_for_a_wide_block():
    assert scheme_for(weight("w", 30, 40), 5, Wish("xxh32", 16), 0).block == 5


# The command.


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, check=False, timeout=300, text=True, env=os.environ
    )


def test_command_prints_what_it_did(tmp_path):
    source = saved(mlp(), tmp_path)
    done = run("compress", source, "-o", tmp_path / "out.hnet", "--ratio", 8)
    assert done.returncode == 0, done.stderr
    for text in ("w1", "hashed, dyadic, 48 x 96", "numbers", "error of W", "relative error", "least squares alone"):
        assert text in done.stdout
    data = json.loads(run("compress", source, "-o", tmp_path / "out.hnet", "--ratio", "auto:0.5", "--json").stdout)
    assert data["output_error"] <= data["max_error"] == 0.5
    assert run("verify", tmp_path / "out.hnet").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.onnx",), "none.onnx: No such file or directory"),
        (("text.onnx",), "not an ONNX model"),
        (("dense.onnx", "--ratio", "0"), "the ratio is 0"),
        (("dense.onnx", "--ratio", "many"), "--ratio 'many'; expected a number above 1, or auto:ERR"),
        (("dense.onnx", "--ratio", "auto:-1"), "the error to keep is -1"),
        (("dense.onnx", "--layers", "conv*"), "--layers 'conv*' matches no weight or node"),
        (("dense.onnx", "--scheme", "md5"), "'md5' is not one of"),
        (("dense.onnx", "--epochs", "3"), "expected --data"),
        (("dense.onnx", "-o", "none/out.hnet"), "does not exist"),
        (("dense.onnx", "-o", "dense.onnx"), "is the model itself"),
        (("dense.onnx", "-o", "."), "is a folder"),
        ((".",), "is a folder; expected a model file"),
    ],
)
def test_command_refuses_in_one_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = saved(mlp(), tmp_path).read_bytes()
    (tmp_path / "text.onnx").write_text("a page of text")
    done = run("compress", *(("-o", "out.hnet") if "-o" not in arguments else ()), *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dense.onnx", "text.onnx"]
    assert (tmp_path / "dense.onnx").read_bytes() == before


def test_command_without_torch_says_what_to_install(tmp_path):
    np.save(tmp_path / "x.npy", nets.weights(480).reshape(10, 48))
    source = saved(mlp(), tmp_path)
    code = "import sys; sys.modules['torch'] = None; from hashinfer.cli import main; main()"
    arguments = ["compress", source, "-o", tmp_path / "out.hnet", "--data", tmp_path / "x.npy"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'hashinfer[torch]'" in done.stderr
    without = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments[:4])], capture_output=True, text=True, check=False
    )
    assert without.returncode == 0, without.stderr


def test_typed_errors_for_bad_models(tmp_path):
    with pytest.raises(ModelError):
        compress(saved(ModelProto(), tmp_path), tmp_path / "out.hnet", Options())
    unknown = mlp()
    unknown.graph.node[1].op_type = "Relo"
    with pytest.raises(UnsupportedError, match="Relo"):
        compress(saved(unknown, tmp_path), tmp_path / "out.hnet", Options())
