"""What is fused, what is not, and that either gives onnxruntime's answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, parser
from onnx.reference import ReferenceEvaluator

import hashinfer
from hashinfer.errors import MemoryLimitError, ModelError
from hashinfer.model.dense import dense_twin
from hashinfer.model.write import expand_node
from hashinfer.schemes import DOMAIN, Dyadic, Xxh32
from tests import nets
from tests.nets import node

F32 = np.float32
LAYERS = {"dyadic": Dyadic(16, 6, 8, 3, 8), "xxh32": Xxh32(20, 6, 8, 3, 2), "dense": None}
BIAS = nets.weights(8, 5)
SCALAR = np.array(0.5, F32)


def matrix(kind: str, constants: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    """Nodes that make W [6, 8]; none where it is an initializer."""
    layer = LAYERS[kind]
    if layer is None:
        constants["W"] = nets.weights(48).reshape(6, 8)
        return []
    constants["w"] = nets.weights(layer.buckets)
    return [expand_node(layer, "w", "W")]


def check(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[str]:
    """Compare with onnxruntime; returns the labels of the steps."""
    data = model.SerializeToString()
    session = hashinfer.InferenceSession(data)
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feeds)
    for a, b in zip(session.run(None, feeds), theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return [s["op"] for s in session.report({k: v.shape for k, v in feeds.items()})["steps"] if s["runs"] != "folded"]


TAILS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], str]] = {
    "relu": ([node("Relu", ["m"], ["y"])], {}, "+Relu"),
    "sigmoid": ([node("Sigmoid", ["m"], ["y"])], {}, "+Sigmoid"),
    "tanh": ([node("Tanh", ["m"], ["y"])], {}, "+Tanh"),
    "leaky": ([node("LeakyRelu", ["m"], ["y"], alpha=0.3)], {}, "+LeakyRelu"),
    "relu6": (
        [node("Clip", ["m", "low", "high"], ["y"])],
        {"low": np.array(0, F32), "high": np.array(6, F32)},
        "+Clip",
    ),
    "clip above": ([node("Clip", ["m", "", "high"], ["y"])], {"high": np.array(0.1, F32)}, "+Clip"),
    "bias": ([node("Add", ["m", "b"], ["y"])], {"b": BIAS}, "+Add"),
    "bias first": ([node("Add", ["b", "m"], ["y"])], {"b": BIAS}, "+Add"),
    "bias and relu": ([node("Add", ["m", "b"], ["a"]), node("Relu", ["a"], ["y"])], {"b": BIAS}, "+Add+Relu"),
    "gelu": ([node("Gelu", ["m"], ["y"])], {}, ""),
    "scalar bias": ([node("Add", ["m", "s"], ["y"])], {"s": SCALAR}, ""),
    "two activations": ([node("Relu", ["m"], ["a"]), node("Tanh", ["a"], ["y"])], {}, "+Relu"),
    "bias behind relu": ([node("Relu", ["m"], ["a"]), node("Add", ["a", "b"], ["y"])], {"b": BIAS}, "+Relu"),
    "used twice": ([node("Relu", ["m"], ["a"]), node("Add", ["a", "m"], ["y"])], {}, ""),
    "added to itself": ([node("Add", ["m", "m"], ["y"])], {}, ""),
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", LAYERS)
def test_what_follows_a_product(kind: str, tail: str) -> None:
    after, constants, joined = TAILS[tail]
    constants = dict(constants)
    nodes = [*matrix(kind, constants), node("MatMul", ["x", "W"], ["m"]), *after]
    for shape in ((5, 6), (2, 3, 6)):
        made = nets.model(nodes, {"x": (F32, shape)}, {"y": (F32, (*shape[:-1], 8))}, constants)
        steps = check(made, {"x": nets.weights(int(np.prod(shape)), 7).reshape(shape)})
        product = next(s for s in steps if "MatMul" in s)
        assert product.endswith("MatMul" + joined)


def test_an_output_between_is_kept() -> None:
    constants = {"b": BIAS}
    nodes = [*matrix("dyadic", constants), node("MatMul", ["x", "W"], ["m"]), node("Add", ["m", "b"], ["y"])]
    made = nets.model(nodes, {"x": (F32, [3, 6])}, {"m": (F32, [3, 8]), "y": (F32, [3, 8])}, constants)
    assert "ExpandDyadic+MatMul" in check(made, {"x": nets.weights(18).reshape(3, 6)})


GEMM: dict[str, dict[str, Any]] = {
    "plain": {},
    "alpha": {"alpha": 0.5},
    "beta": {"beta": -2.0},
    "transA": {"transA": 1},
    "transB": {"transB": 1},
    "all": {"transA": 1, "transB": 1, "alpha": 1.5, "beta": 0.25},
}
C_SHAPES = {"none": None, "row": (8,), "one row": (1, 8), "column": (5, 1), "full": (5, 8), "scalar": ()}


@pytest.mark.parametrize("c", C_SHAPES)
@pytest.mark.parametrize("form", GEMM)
@pytest.mark.parametrize("kind", [*LAYERS, "computed c"])
def test_gemm(kind: str, form: str, c: str) -> None:
    attrs, shape = GEMM[form], C_SHAPES[c]
    constants: dict[str, np.ndarray] = {}
    nodes = matrix(kind if kind in LAYERS else "dyadic", constants)
    w = "W"
    if attrs.get("transB"):
        nodes.append(node("Transpose", ["W"], ["T"], perm=[1, 0]))
        w = "T"
    inputs: dict[str, tuple[Any, Any]] = {"x": (F32, [6, 5] if attrs.get("transA") else [5, 6])}
    feeds = {"x": nets.weights(30).reshape(inputs["x"][1])}
    names = ["x", w]
    if shape is not None:
        value = nets.weights(int(np.prod(shape)), 3).reshape(shape)
        names.append("c")
        if kind == "computed c":
            inputs["c"], feeds["c"] = (F32, shape), value
        else:
            constants["c"] = value
    nodes.append(node("Gemm", names, ["y"], **attrs))
    steps = check(nets.model(nodes, inputs, {"y": (F32, [5, 8])}, constants), feeds)
    if kind != "dense":
        assert any(s.startswith("Expand") and s.endswith("+Gemm") for s in steps)


@pytest.mark.parametrize("form", GEMM)
@pytest.mark.parametrize("kind", LAYERS)
def test_gemm_and_what_follows(kind: str, form: str) -> None:
    attrs = GEMM[form]
    constants = {"b": BIAS}
    nodes = matrix(kind, constants)
    if attrs.get("transB"):
        nodes.append(node("Transpose", ["W"], ["T"], perm=[1, 0]))
    shape = (6, 5) if attrs.get("transA") else (5, 6)
    nodes += [
        node("Gemm", ["x", "T" if attrs.get("transB") else "W"], ["m"], **attrs),
        node("Add", ["m", "b"], ["a"]),
        node("Relu", ["a"], ["y"]),
    ]
    check(
        nets.model(nodes, {"x": (F32, shape)}, {"y": (F32, [5, 8])}, constants), {"x": nets.weights(30).reshape(shape)}
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_products_of_other_dtypes(dtype: Any) -> None:
    a = (nets.weights(30) * 4).reshape(5, 6).astype(dtype)
    b = (nets.weights(48, 2) * 4).reshape(6, 8).astype(dtype)
    made = nets.model([node("MatMul", ["a", "b"], ["y"])], {"a": (dtype, [5, 6])}, {"y": (dtype, [5, 8])}, {"b": b})
    y = hashinfer.InferenceSession(made.SerializeToString())(a)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(float), a.astype(float) @ b.astype(float), rtol=2e-2, atol=1e-1)


CONV: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    "valid": ({"auto_pad": "VALID"}, (2, 3, 7, 6), (4, 3, 3, 2)),
    "same upper": ({"auto_pad": "SAME_UPPER", "strides": [2, 1]}, (2, 3, 7, 6), (4, 3, 3, 2)),
    "same lower": ({"auto_pad": "SAME_LOWER", "strides": [2, 3]}, (1, 3, 8, 8), (4, 3, 4, 4)),
    "pads": ({"pads": [1, 0, 2, 1], "strides": [2, 2]}, (2, 3, 7, 6), (4, 3, 3, 2)),
    "dilated": ({"dilations": [2, 1], "pads": [2, 2, 2, 2]}, (1, 3, 9, 9), (4, 3, 3, 3)),
    "groups": ({"group": 2}, (2, 4, 5, 5), (6, 2, 3, 3)),
    "depthwise": ({"group": 4, "pads": [1, 1, 1, 1]}, (2, 4, 5, 5), (4, 1, 3, 3)),
    "one dimension": ({"pads": [1, 2], "strides": [2]}, (2, 3, 11), (5, 3, 4)),
    "pointwise": ({}, (3, 8, 4, 4), (5, 8, 1, 1)),
}


@pytest.mark.parametrize("bias", ["none", "own", "added"])
@pytest.mark.parametrize("scheme", ["dyadic", "xxh32", "dense"])
@pytest.mark.parametrize("case", CONV)
def test_convolutions(case: str, scheme: str, bias: str) -> None:
    attrs, x_shape, w_shape = CONV[case]
    out, rows = w_shape[0], int(np.prod(w_shape[1:]))
    constants: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    if scheme == "dense":
        constants["K"] = nets.weights(out * rows).reshape(w_shape)
    else:
        layer = nets.scheme(scheme, rows, out, max(4, out * rows // 2))
        constants |= {"w": nets.weights(layer.buckets), "shape": np.array(w_shape, np.int64)}
        nodes = [
            expand_node(layer, "w", "W"),
            node("Transpose", ["W"], ["T"], perm=[1, 0]),
            node("Reshape", ["T", "shape"], ["K"], allowzero=1),
        ]
    names = ["x", "K"]
    if bias == "own":
        constants["b"] = nets.weights(out, 8)
        names.append("b")
    nodes.append(node("Conv", names, ["c"], **attrs))
    if bias == "added":
        constants["b"] = nets.weights(out, 8).reshape(out, *[1] * (len(w_shape) - 2))
        nodes.append(node("Add", ["c", "b"], ["a"]))
    nodes.append(node("Relu", ["a" if bias == "added" else "c"], ["y"]))
    made = nets.model(nodes, {"x": (F32, x_shape)}, {"y": (F32, None)}, constants)
    steps = check(made, {"x": nets.weights(int(np.prod(x_shape)), 4).reshape(x_shape)})
    expected = ("" if scheme == "dense" else f"Expand{scheme.capitalize()}+") + "Conv"
    assert steps == [expected + ("+Add" if bias == "added" else "") + "+Relu"]


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (1, 1, 4, 1, 1)])
def test_a_bias_of_higher_rank_widens_the_result(shape: tuple[int, ...]) -> None:
    nodes = [node("Conv", ["x", "K"], ["c"]), node("Add", ["c", "b"], ["y"])]
    constants = {"K": nets.weights(4 * 3 * 9).reshape(4, 3, 3, 3), "b": nets.weights(4).reshape(shape)}
    made = nets.model(nodes, {"x": (F32, [2, 3, 5, 5])}, {"y": (F32, None)}, constants)
    steps = check(made, {"x": nets.weights(150).reshape(2, 3, 5, 5)})
    assert len(steps) == (2 if len(shape) > 4 else 1)


def test_batched_products_of_no_matrices() -> None:
    made = nets.model(
        [node("MatMul", ["a", "b"], ["y"])],
        {"a": (F32, ["N", 3, 4]), "b": (F32, ["N", 4, 5])},
        {"y": (F32, ["N", 3, 5])},
        {},
    )
    for n in (0, 1, 3):
        check(made, {"a": nets.weights(12 * n).reshape(n, 3, 4), "b": nets.weights(20 * n).reshape(n, 4, 5)})


def test_three_dimensional_convolution_falls_back() -> None:
    made = nets.model(
        [node("Conv", ["x", "K"], ["c"]), node("Relu", ["c"], ["y"])],
        {"x": (F32, [1, 2, 4, 4, 4])},
        {"y": (F32, None)},
        {"K": nets.weights(3 * 2 * 8).reshape(3, 2, 2, 2, 2)},
    )
    check(made, {"x": nets.weights(128).reshape(1, 2, 4, 4, 4)})


def test_weights_computed_by_the_model() -> None:
    layer = Xxh32(20, 6, 8, 3, 2)
    made = nets.model(
        [node("Mul", ["w", "s"], ["v"]), expand_node(layer, "v", "W"), node("MatMul", ["x", "W"], ["y"])],
        {"x": (F32, [3, 6]), "s": (F32, [1])},
        {"y": (F32, [3, 8])},
        {"w": nets.weights(20)},
    )
    check(made, {"x": nets.weights(18).reshape(3, 6), "s": np.array([2], F32)})


def test_nodes_of_one_name_stay_apart() -> None:
    """Node names need not be unique: W of two layers, and helpers of two Gemms, must not be taken for each other."""
    first, second = Xxh32(20, 6, 6, 3), Xxh32(20, 6, 6, 4)
    nodes = [
        expand_node(first, "w", "W1", "twin"),
        expand_node(second, "w", "W2", "twin"),
        node("MatMul", ["W1", "x"], ["a"], "twin"),
        node("MatMul", ["W2", "x"], ["b"], "twin"),
        node("Gemm", ["x", "W1"], ["c"], "twin", transA=1),
        node("Gemm", ["a", "W2", "twin/W"], ["d"], "twin", transA=1, beta=0.5),
        node("Gemm", ["W1", "W2"], ["e"], "twin", transA=1),
        node("Sum", ["a", "b", "c", "d", "e", "twin/Transpose"], ["y"]),
    ]
    constants = {"w": nets.weights(20), "twin/W": nets.weights(6, 3), "twin/Transpose": nets.weights(6, 4)}
    made = nets.model(nodes, {"x": (F32, [6, 6])}, {"y": (F32, [6, 6])}, constants)
    x = nets.weights(36, 5).reshape(6, 6)
    # onnxruntime refuses two nodes of one name, which the standard allows.
    expected = ReferenceEvaluator(made).run(None, {"x": x})[0]
    np.testing.assert_allclose(hashinfer.InferenceSession(made.SerializeToString())(x), expected, rtol=1e-4, atol=1e-4)


def test_scalars_stay_scalars() -> None:
    made = nets.model(
        [
            node("Add", ["x", "c"], ["a"]),
            node("Size", ["v"], ["n"]),
            node("Cast", ["n"], ["f"], to=1),
            node("Mul", ["a", "f"], ["y"]),
        ],
        {"x": (F32, []), "v": (F32, [3])},
        {"y": (F32, []), "f": (F32, [])},
        {"c": SCALAR},
    )
    feeds = {"x": np.array(2, F32), "v": np.zeros(3, F32)}
    check(made, feeds)
    y, f = hashinfer.InferenceSession(made.SerializeToString()).run(None, feeds)
    assert (y.shape, f.shape, float(y)) == ((), (), 7.5)


def test_constants_with_the_names_that_fusing_would_take() -> None:
    constants = {"w": nets.weights(20), "b": BIAS, "b/bias": nets.weights(8, 9)}
    nodes = [
        expand_node(Xxh32(20, 6, 8, 3), "w", "W"),
        node("MatMul", ["x", "W"], ["m"]),
        node("Add", ["m", "b"], ["a"]),
        node("Add", ["a", "b/bias"], ["y"]),
    ]
    made = nets.model(nodes, {"x": (F32, [3, 6])}, {"y": (F32, [3, 8])}, constants)
    check(made, {"x": nets.weights(18).reshape(3, 6)})


def twin_gives_the_same(model: onnx.ModelProto, x: np.ndarray) -> onnx.ModelProto:
    twin = dense_twin(model, 2**30)
    onnx.checker.check_model(twin, full_check=True)
    assert all(n.domain != DOMAIN for n in twin.graph.node)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    got = onnxruntime.InferenceSession(twin.SerializeToString()).run(None, {"x": x})
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
    return twin


@pytest.mark.parametrize("form", ["float32", "float16", "int8", "int8 with zero point", "constant node", "identity"])
def test_dense_twin_of_every_weight_form(form: str) -> None:
    layer = Dyadic(16, 6, 8, 3, 8)
    constants: dict[str, np.ndarray] = {"w": nets.weights(16)}
    before: list[onnx.NodeProto] = []
    source = "v"
    if form == "float32":
        source = "w"
    elif form == "float16":
        constants["w"] = constants["w"].astype(np.float16)
        before = [node("Cast", ["w"], ["v"], to=1)]
    elif form.startswith("int8"):
        constants = {"w": np.arange(-8, 8, dtype=np.int8), "s": np.array(0.1, F32), "z": np.array(3, np.int8)}
        before = [node("DequantizeLinear", ["w", "s", "z"] if "zero" in form else ["w", "s"], ["v"])]
    elif form == "constant node":
        before = [node("Constant", [], ["v"], value=onnx.numpy_helper.from_array(constants.pop("w")))]
    else:
        before = [node("Identity", ["w"], ["v"])]
    nodes = [*before, expand_node(layer, source, "W"), node("MatMul", ["x", "W"], ["y"])]
    made = nets.model(nodes, {"x": (F32, [3, 6])}, {"y": (F32, [3, 8])}, constants)
    x = nets.weights(18).reshape(3, 6)
    twin = twin_gives_the_same(made, x)
    assert [n.op_type for n in twin.graph.node] == ["MatMul"]
    check(made, {"x": x})


def test_dense_twin_looks_into_functions_and_branches() -> None:
    text = f"""<opset_import: ["" : 20, "{DOMAIN}" : 1], domain: "mine">
Layer (x, w) => (y) {{
    W = {DOMAIN}.ExpandXxh32 <seed: int = 7, rows: int = 6, cols: int = 8, block: int = 2> (w)
    y = MatMul (x, W)
}}"""
    branches = {
        f"{name}_branch": helper.make_graph(
            [expand_node(Xxh32(20, 8, 2, seed), "w", f"V{seed}"), node("MatMul", ["h", f"V{seed}"], [f"o{seed}"])],
            name,
            [],
            [helper.make_tensor_value_info(f"o{seed}", 1, [3, 2])],
        )
        for seed, name in enumerate(("then", "else"))
    }
    made = nets.model(
        [helper.make_node("Layer", ["x", "w"], ["h"], domain="mine"), node("If", ["yes"], ["y"], **branches)],
        {"x": (F32, [3, 6])},
        {"y": (F32, [3, 2])},
        {"w": nets.weights(20), "yes": np.array(True)},
        functions=[parser.parse_function(text)],
        imports={"mine": 1},
    )
    x = nets.weights(18).reshape(3, 6)
    twin = twin_gives_the_same(made, x)
    assert not twin.functions


def test_dense_twin_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(MemoryLimitError, match="allowed"):
        dense_twin(nets.single(Xxh32(4, 2**20, 2**20, 0)), 2**40)
    layer = Xxh32(20, 6, 8, 3)
    made = nets.model(
        [node("Neg", ["v"], ["n"]), expand_node(layer, "n", "W"), node("MatMul", ["x", "W"], ["y"])],
        {"x": (F32, [3, 6]), "v": (F32, [20])},
        {"y": (F32, [3, 8])},
        {},
    )
    with pytest.raises(ModelError, match="no constant"):
        dense_twin(made, 2**30)


@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean"])
@pytest.mark.parametrize(
    ("axes", "keepdims", "fused"),
    [([1], 0, True), ([-2], 1, True), ([0], 0, False), ([2], 0, False), ([0, 1], 1, False)],
)
def test_bags_of_a_lookup(op, axes, keepdims, fused):
    layer = Xxh32(90, 50, 24, 3, 8)
    model = nets.model(
        [
            expand_node(layer, "w", "W"),
            node("Gather", ["W", "ids"], ["r"], axis=0),
            node(op, ["r", "axes"], ["y"], keepdims=keepdims),
        ],
        {"ids": (np.int64, ["N", "M"])},
        {"y": (F32, None)},
        {"w": nets.weights(layer.buckets), "axes": np.array(axes)},
    )
    ids = np.random.default_rng(0).integers(0, 50, (4, 9))
    labels = check(model, {"ids": ids})
    assert labels == ([f"ExpandXxh32+Gather+{op}"] if fused else ["ExpandXxh32+Gather", op])
