"""Products and convolutions of 8-bit integers as kernels, exact; depthwise convolution; the way to and from floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hashinfer
from tests import naive, nets

EPS = float(np.finfo(np.float32).eps)
BYTES = st.sampled_from([np.uint8, np.int8])


def bytes_of(kind: Any, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """All values of the dtype, its ends more often than others."""
    rng, limits = np.random.default_rng(seed), np.iinfo(kind)
    found = rng.integers(limits.min, limits.max, shape, endpoint=True)
    return np.where(rng.random(shape) < 0.2, rng.choice([limits.min, limits.max], shape), found).astype(kind)


def run(op: str, operands: list[np.ndarray | None], out: Any, choice: str = "", **attrs: Any) -> np.ndarray:
    """The op's output, of dtype `out`; its step must run as kernels, by the one named."""
    names = [f"x{k}" if x is not None else "" for k, x in enumerate(operands)]
    given_ = {n: x for n, x in zip(names, operands, strict=True) if x is not None}
    inputs = {n: (x.dtype, x.shape) for n, x in given_.items()}
    model = nets.model([nets.node(op, names, ["y"], **attrs)], inputs, {"y": (out, None)}, {}, opset=21)
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    (found,) = session.run(None, given_)
    (step,) = session.report({n: x.shape for n, x in given_.items()})["steps"]
    assert step["runs"] == "native"
    assert not choice or step["kernel"] == choice, step["kernel"]
    return np.asarray(found)


def wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64)


SIZES = st.tuples(st.sampled_from([1, 2, 3, 4, 5, 33, 130]), st.integers(1, 300), st.integers(1, 140))


@settings(max_examples=60, deadline=None)
@given(SIZES, BYTES, BYTES, st.booleans(), st.booleans(), st.integers(0, 99))
def test_product_of_bytes_is_exact(size, left, right, rows, cols, seed):
    m, k, n = size
    a, b = bytes_of(left, (m, k), seed), bytes_of(right, (k, n), seed + 1)
    a_zero, b_zero = bytes_of(left, (m if rows else 1,), seed + 2), bytes_of(right, (n if cols else 1,), seed + 3)
    found = run("MatMulInteger", [a, b, a_zero, b_zero], np.int32, "integer_row" if m <= 3 else "integer_block")
    assert np.array_equal(found, (wide(a) - wide(a_zero).reshape(-1, 1)) @ (wide(b) - wide(b_zero)))


@pytest.mark.parametrize("shapes", [((3, 2, 5, 7), (7, 9)), ((2, 5, 7), (2, 7, 9)), ((2, 1, 5, 7), (3, 7, 9))])
def test_product_of_batches_of_bytes(shapes):
    a, b = bytes_of(np.uint8, shapes[0], 1), bytes_of(np.int8, shapes[1], 2)
    found = run("MatMulInteger", [a, b, np.array(200, np.uint8)], np.int32)
    assert np.array_equal(found, (wide(a) - 200) @ wide(b))


def test_product_sums_wrap_around_as_int32():
    a, b = np.full((5, 40_000), 255, np.uint8), np.full((40_000, 2), 255, np.uint8)
    found = run("MatMulInteger", [a, b], np.int32)
    assert np.array_equal(found, np.full((5, 2), 40_000 * 255**2 - 2**32))


@pytest.mark.parametrize("shapes", [((0, 4), (4, 3)), ((5, 0), (0, 3)), ((5, 4), (4, 0))])
def test_product_of_nothing(shapes):
    found = run("MatMulInteger", [np.ones(shapes[0], np.uint8), np.ones(shapes[1], np.uint8)], np.int32)
    assert np.array_equal(found, np.zeros((shapes[0][0], shapes[1][1])))


def quantised(value: np.ndarray, zero: Any, kind: Any) -> np.ndarray:
    """value rounded, plus the zero point, saturated."""
    limits = np.iinfo(kind)
    return np.clip(np.rint(value) + float(zero), limits.min, limits.max).astype(kind)


@settings(max_examples=40, deadline=None)
@given(SIZES, BYTES, st.booleans(), st.booleans(), st.integers(0, 99))
def test_quantised_product(size, kind, rows, cols, seed):
    m, k, n = size
    a, b = bytes_of(np.uint8, (m, k), seed), bytes_of(np.int8, (k, n), seed + 1)
    scales = np.random.default_rng(seed).uniform(0.001, 0.1, m + n + 1).astype(np.float32)
    a_scale, b_scale = scales[: m if rows else 1], scales[m : m + (n if cols else 1)]
    a_zero, b_zero = bytes_of(np.uint8, a_scale.shape, seed), bytes_of(np.int8, b_scale.shape, seed)
    y_scale, y_zero = np.float32(2.5), kind(17)
    operands = [a, a_scale, a_zero, b, b_scale, b_zero, np.array(y_scale), np.array(y_zero)]
    exact = (wide(a) - wide(a_zero).reshape(-1, 1)) @ (wide(b) - wide(b_zero))
    factor = a_scale.reshape(-1, 1) * b_scale / y_scale
    assert np.array_equal(run("QLinearMatMul", operands, kind), quantised(exact.astype(np.float32) * factor, 17, kind))


CONVOLUTIONS = [
    ((2, 3, 9, 11), (5, 3, 3, 3), {"pads": [1, 2, 0, 1]}, "integer_pixels"),
    ((1, 40, 6, 5), (70, 40, 3, 2), {"strides": [1, 2]}, "integer_pixels"),
    ((1, 8, 5, 40), (12, 4, 1, 3), {"group": 2, "pads": [0, 1, 0, 1]}, "integer_pixels"),
    ((2, 6, 9, 35), (6, 1, 3, 3), {"group": 6, "pads": [1] * 4}, "depthwise"),
    ((1, 4, 30, 9), (8, 1, 5, 2), {"group": 4, "strides": [2, 2], "dilations": [1, 2]}, "depthwise"),
    ((1, 6, 70), (3, 2, 3), {"group": 3, "strides": [3]}, "depthwise"),
]


def convolved(x: np.ndarray, w: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """In float64, over one or two spatial axes."""
    flat = x.ndim == 3
    strides, dilations = (list(attrs.get(name, [1] * (x.ndim - 2))) for name in ("strides", "dilations"))
    pads, groups = list(attrs.get("pads", [0] * 2 * (x.ndim - 2))), attrs.get("group", 1)
    if flat:
        x, w, pads = x[:, :, None], w[:, :, None], [0, pads[0], 0, pads[1]]
        strides, dilations = [1, *strides], [1, *dilations]
    x = np.pad(x, [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])])
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True))
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, (2, 3))
    seen = seen[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    seen = seen.reshape(len(x), groups, -1, *seen.shape[2:])
    split = w.reshape(groups, -1, *w.shape[1:])
    y = np.einsum("ngchwij,gocij->ngohw", seen, split).reshape(len(x), len(w), *seen.shape[3:5])
    return y[:, :, 0] if flat else y


@pytest.mark.parametrize(("shape", "kernel", "attrs", "choice"), CONVOLUTIONS)
@pytest.mark.parametrize(("left", "right"), [(np.uint8, np.int8), (np.int8, np.uint8)])
def test_convolution_of_bytes_is_exact(shape, kernel, attrs, choice, left, right):
    x, w = bytes_of(left, shape, 1), bytes_of(right, kernel, 2)
    for zeros in (1, kernel[0]):
        x_zero, w_zero = bytes_of(left, (), 3), bytes_of(right, (zeros,), 4)
        found = run("ConvInteger", [x, w, x_zero, w_zero], np.int32, choice, **attrs)
        centred = (wide(w) - wide(w_zero).reshape(-1, *[1] * (w.ndim - 1))).astype(np.float64)
        assert np.array_equal(found, convolved((wide(x) - int(x_zero)).astype(np.float64), centred, attrs))


@pytest.mark.parametrize(("shape", "kernel", "attrs", "choice"), CONVOLUTIONS)
@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("biased", [False, True])
def test_quantised_convolution(shape, kernel, attrs, choice, kind, biased):
    x, w = bytes_of(np.uint8, shape, 1), bytes_of(np.int8, kernel, 2)
    maps, rng = kernel[0], np.random.default_rng(3)
    x_scale, w_scale, y_scale = np.float32(0.02), rng.uniform(0.01, 0.1, maps).astype(np.float32), np.float32(1.5)
    bias = rng.integers(-(2**31), 2**31, maps).astype(np.int32) // (1 if biased else 2**20)
    operands = [x, x_scale, np.array(9, np.uint8), w, w_scale, np.array(-3, np.int8), y_scale, np.array(5, kind)]
    found = run("QLinearConv", [np.array(o) for o in [*operands, *[bias] * biased]], kind, choice, **attrs)
    exact = convolved((wide(x) - 9).astype(np.float64), (wide(w) + 3).astype(np.float64), attrs)
    column = (-1, *[1] * (len(shape) - 2))
    sums = (exact + bias.reshape(column) * biased).astype(np.float32)
    assert np.array_equal(found, quantised(sums * (x_scale * w_scale.reshape(column) / y_scale), 5, kind))


GEOMETRIES = st.fixed_dictionaries(
    {
        "shape": st.tuples(st.integers(1, 2), st.integers(2, 5), st.integers(7, 20), st.integers(7, 40)),
        "kernel": st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 4), st.integers(1, 4)),
        "strides": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "dilations": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "pads": st.tuples(*[st.integers(0, 3)] * 4),
    }
)


@settings(max_examples=60, deadline=None)
@given(GEOMETRIES, st.sampled_from(["none", "relu", "clip"]), st.booleans(), st.integers(0, 9))
def test_convolution_by_planes(geometry, activation, biased, seed):
    batch, groups, height, width = geometry["shape"]
    outer, inner, *kernel = geometry["kernel"]
    attrs = {name: list(geometry[name]) for name in ("strides", "dilations", "pads")} | {"group": groups}
    x = nets.weights(batch * groups * inner * height * width, seed).reshape(batch, groups * inner, height, width)
    w = nets.weights(groups * outer * inner * kernel[0] * kernel[1], seed + 1).reshape(-1, inner, *kernel)
    bias = nets.weights(len(w), seed + 2)
    nodes = [nets.node("Conv", ["x", "w", *["b"] * biased], ["c"], **attrs)]
    constants = {"w": w, "b": bias}
    if activation == "clip":
        nodes.append(nets.node("Clip", ["c", "low", "high"], ["y"]))
        constants |= {"low": np.array(-0.5, np.float32), "high": np.array(0.75, np.float32)}
    else:
        nodes.append(nets.node("Relu" if activation == "relu" else "Identity", ["c"], ["y"]))
    model = nets.model(nodes, {"x": (np.float32, x.shape)}, {"y": (np.float32, None)}, constants)
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    assert session.report({"x": x.shape})["steps"][0]["kernel"] == "depthwise"
    exact = convolved(x.astype(np.float64), w.astype(np.float64), attrs)
    size = convolved(np.abs(x).astype(np.float64), np.abs(w).astype(np.float64), attrs)
    column = bias.reshape(-1, 1, 1) * biased
    expected = naive.activate(exact + column, activation, -0.5, 0.75)
    allowed = (inner * kernel[0] * kernel[1] + 2) * EPS * (size + np.abs(column))
    assert (np.abs(session(x) - expected) <= allowed).all()


def test_what_is_not_finite_stays_under_its_windows():
    x = np.zeros((1, 2, 8, 40), np.float32)
    x[0, 0, 3, 20], x[0, 1, 0, 39] = np.nan, np.inf
    w = np.ones((2, 1, 3, 3), np.float32)
    found = run("Conv", [x, w], np.float32, "depthwise", group=2, pads=[1] * 4)
    assert np.array_equal(np.argwhere(np.isnan(found)), [(0, 0, r, c) for r in (2, 3, 4) for c in (19, 20, 21)])
    assert np.array_equal(np.argwhere(np.isinf(found)), [(0, 1, r, c) for r in (0, 1) for c in (38, 39)])


def test_planes_too_large_for_scratch_go_by_pixel_blocks():
    x, w = nets.weights(2 * 600 * 600).reshape(1, 2, 600, 600), nets.weights(2 * 9).reshape(2, 1, 3, 3)
    found = run("Conv", [x, w], np.float32, "pixel_block_dense", group=2)
    np.testing.assert_allclose(found, convolved(x.astype(float), w.astype(float), {"group": 2}), atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "kernel", "attrs"),
    [
        ((1, 2, 3), (2, 1, 2), {"pads": [4, 0], "strides": [6]}),
        ((1, 2, 3, 1), (2, 1, 1, 3), {"pads": [0, 10, 0, 0], "strides": [1, 5]}),
        ((1, 2, 3, 40), (2, 1, 2, 3), {"pads": [9, 70, 1, 3], "strides": [4, 30]}),
        ((1, 2, 3, 1), (2, 1, 1, 3), {"pads": [0, 2**40, 0, 0], "strides": [1, 2**40]}),
    ],
)
def test_windows_that_end_within_the_padding(shape, kernel, attrs):
    x, w = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape), np.ones(kernel, np.float32)
    found = run("Conv", [x, w], np.float32, "depthwise", group=2, **attrs)
    if max(attrs["pads"]) > 100:
        assert not found.any()
        return
    assert np.array_equal(found, convolved(x, w, {**attrs, "group": 2}))


def test_what_onnx_would_take_for_columns_is_refused():
    a, b = np.array([[0, 1], [2, 3]], np.uint8), np.ones((2, 2, 2), np.uint8)
    rows, each = np.array([0, 1], np.uint8), np.zeros((2, 1, 2), np.uint8)
    names = ["a", "b", "rows", "each"]
    inputs = {name: (np.uint8, x.shape) for name, x in zip(names, (a, b, rows, each), strict=True)}
    model = nets.model([nets.node("MatMulInteger", names, ["y"])], inputs, {"y": (np.int32, None)}, {})
    feed = dict(zip(names, (a, b, rows, each), strict=True))
    with pytest.raises(hashinfer.HashinferError, match=r"expected \[..., M, 1\]"):
        hashinfer.InferenceSession(model.SerializeToString()).run(None, feed)
    inputs["rows"] = (np.uint8, (2, 1))
    model = nets.model([nets.node("MatMulInteger", names, ["y"])], inputs, {"y": (np.int32, None)}, {})
    feed["rows"] = rows.reshape(2, 1)
    (found,) = hashinfer.InferenceSession(model.SerializeToString()).run(None, feed)
    assert found.tolist() == [[[1, 1], [3, 3]]] * 2
