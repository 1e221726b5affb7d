"""Reductions, the largest elements, resizing, and conversions as kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hashinfer
from tests import nets

EPS = float(np.finfo(np.float32).eps)
SHAPES = st.lists(st.sampled_from([1, 2, 3, 5, 16, 17, 40]), min_size=1, max_size=3).map(tuple)


def run(op: str, x: np.ndarray, constants: list[np.ndarray | None], outs: list[Any], **attrs: Any) -> list[np.ndarray]:
    """The op's outputs, of dtypes `outs`; its step must run as kernels."""
    names = [f"c{k}" if c is not None else "" for k, c in enumerate(constants)]
    kept = {name: c for name, c in zip(names, constants, strict=True) if c is not None}
    targets = [f"y{k}" for k in range(len(outs))]
    node = nets.node(op, ["x", *names], targets, **attrs)
    outputs = {name: (kind, None) for name, kind in zip(targets, outs, strict=True)}
    model = nets.model([node], {"x": (x.dtype, x.shape)}, outputs, kept, opset=21)
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    (step,) = session.report({"x": x.shape})["steps"]
    assert step["runs"] == "native"
    return [np.asarray(y) for y in session.run(None, {"x": x})]


@st.composite
def reduced(draw: st.DrawFn) -> tuple[np.ndarray, tuple[int, ...]]:
    """An array, some of its elements not finite, and neighbouring axes."""
    shape = draw(SHAPES)
    first = draw(st.integers(0, len(shape) - 1))
    last = draw(st.integers(first, len(shape) - 1))
    x = nets.weights(int(np.prod(shape)), draw(st.integers(0, 99))).reshape(shape)
    return x, tuple(range(first, last + 1))


@settings(max_examples=60, deadline=None)
@given(reduced(), st.sampled_from(["ReduceSum", "ReduceMean"]), st.booleans())
def test_sums_and_means(case, op, kept):
    x, axes = case
    wide, count = x.astype(np.float64), int(np.prod([x.shape[a] for a in axes]))
    exact = wide.sum(axes, keepdims=kept) / (count if op == "ReduceMean" else 1)
    size = np.abs(wide).sum(axes, keepdims=kept) / (count if op == "ReduceMean" else 1)
    (found,) = run(op, x, [np.array(axes)], [np.float32], keepdims=int(kept))
    assert found.shape == exact.shape
    assert (np.abs(found - exact) <= (count + 2) * EPS * size).all()


@settings(max_examples=60, deadline=None)
@given(reduced(), st.sampled_from(["ReduceMax", "ReduceMin"]), st.integers(0, 30))
def test_largest_and_least(case, op, turn):
    x, axes = case
    flat = x.reshape(-1)
    flat[turn::31], flat[turn + 3 :: 37], flat[turn + 5 :: 41] = np.nan, np.inf, -np.inf
    (found,) = run(op, x, [np.array(axes)], [np.float32])
    np.testing.assert_array_equal(found, (np.max if op == "ReduceMax" else np.min)(x, axes, keepdims=True))


def test_axes_that_are_no_neighbours_go_another_way():
    x = nets.weights(60).reshape(3, 4, 5)
    node = nets.node("ReduceSum", ["x", "a"], ["y"])
    model = nets.model([node], {"x": (np.float32, x.shape)}, {"y": (np.float32, None)}, {"a": np.array([0, 2])})
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    assert session.report({"x": x.shape})["steps"][0]["runs"] != "native"
    np.testing.assert_allclose(session(x), x.sum((0, 2), keepdims=True), rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.data())
def test_the_first_elements_in_order(shape, data):
    axis, largest = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(0, 1))
    k, seed = data.draw(st.integers(1, shape[axis])), data.draw(st.integers(0, 99))
    rng = np.random.default_rng(seed)
    # Few different numbers: of equal ones the first comes first; and both zeros are equal.
    x = rng.choice(np.array([-1, -0.0, 0, 2, np.nan, np.inf, -np.inf], np.float32), shape)
    found, places = run("TopK", x, [np.array([k])], [np.float32, np.int64], axis=axis, largest=largest)
    keys = np.where(np.isnan(x), 1e30, np.clip(x, -1e20, 1e20))
    order = np.argsort(-keys if largest else keys, axis, kind="stable").take(np.arange(k), axis)
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(found, np.take_along_axis(x, order, axis))


@pytest.mark.parametrize("k", [1, 10, 64])
@pytest.mark.parametrize("line", ["random", "rising", "falling", "equal"])
def test_the_first_of_a_long_line(k, line):
    x = nets.weights(5000)
    x = {"random": x, "rising": np.sort(x), "falling": -np.sort(x), "equal": np.ones_like(x)}[line]
    found, places = run("TopK", x, [np.array([k])], [np.float32, np.int64])
    order = np.argsort(-x, kind="stable")[:k]
    assert np.array_equal(places, order)
    assert np.array_equal(found, x[order])


def weights_of(places: np.ndarray, size: int, mode: str) -> np.ndarray:
    """float64 [out, size]: how much of each input an output takes."""
    matrix, a = np.zeros((len(places), size)), -0.75
    for j, place in enumerate(places):
        base = int(np.floor(place))
        f = place - base
        if mode == "linear":
            taps = {base: 1 - f, base + 1: f}
        else:
            near, far = (
                (lambda t: ((a + 2) * t - (a + 3)) * t**2 + 1),
                (lambda t: a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a),
            )
            taps = {base - 1: far(1 + f), base: near(f), base + 1: near(1 - f), base + 2: far(2 - f)}
        for i, weight in taps.items():
            matrix[j, min(max(i, 0), size - 1)] += weight
    return matrix


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("out", [(1, 2, 9, 31), (1, 2, 20, 7), (1, 2, 5, 40), (1, 2, 11, 16)])
@pytest.mark.parametrize("where", ["half_pixel", "asymmetric"])
def test_resizing(mode, out, where):
    x = nets.weights(2 * 11 * 17).reshape(1, 2, 11, 17)
    exact = x.astype(np.float64)
    for axis, letters in ((2, "ncij,ki->nckj"), (3, "ncij,kj->ncik")):
        scale, steps = out[axis] / x.shape[axis], np.arange(out[axis])
        places = (steps + 0.5) / scale - 0.5 if where == "half_pixel" else steps / scale
        if scale != 1:
            exact = np.einsum(letters, exact, weights_of(places, x.shape[axis], mode))
    given_ = {"mode": mode, "coordinate_transformation_mode": where}
    (found,) = run("Resize", x, [None, None, np.array(out)], [np.float32], **given_)
    assert np.abs(found - exact).max() <= 40 * EPS * np.abs(x).max()


@pytest.mark.parametrize("axes", [(2, 3), (1,), (0, 1, 2, 3)])
def test_resizing_to_the_nearest_copies(axes):
    x = nets.weights(3 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    x.reshape(-1)[::7] = np.nan
    scales = [2.0 if axis in axes else 1.0 for axis in range(4)]
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    (found,) = run("Resize", x, [None, np.array(scales, np.float32)], [np.float32], **attrs)
    expected = x
    for axis in axes:
        expected = np.repeat(expected, 2, axis)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("size", "out"), [(7, 29), (16, 12), (5, 3), (3, 1)])
def test_the_corners_of_an_axis_are_its_corners(size, out):
    x = np.arange(size, dtype=np.float32)
    attrs = {"mode": "nearest", "coordinate_transformation_mode": "align_corners", "nearest_mode": "floor"}
    (found,) = run("Resize", x, [None, None, np.array([out])], [np.float32], **attrs)
    assert found[0] == 0
    assert found[-1] == (size - 1 if out > 1 else 0)


def test_float16_of_every_kind_of_float32():
    rng = np.random.default_rng(0)
    bits = np.concatenate([
        rng.integers(0, 2**32, 200_000, dtype=np.uint64).astype(np.uint32),
        # Around each float16 and half-way to its neighbour.
        *(np.arange(0, 2**15, dtype=np.uint16).view(np.float16).astype(np.float32).view(np.uint32) + np.uint32(d)
          for d in (0, 1, 2**12 - 1, 2**12, 2**12 + 1)),
        rng.integers(0x33000000, 0x38800000, 100_000).astype(np.uint32),
    ])  # fmt: skip
    x = np.concatenate([bits, bits | np.uint32(2**31)]).view(np.float32)
    (found,) = run("Cast", x, [], [np.float16], to=10)
    with np.errstate(all="ignore"):
        expected = x.astype(np.float16)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    there = ~np.isnan(expected)
    assert np.array_equal(found[there].view(np.uint16), expected[there].view(np.uint16))


def test_float32_of_every_float16():
    x = np.arange(2**16, dtype=np.uint32).astype(np.uint16).view(np.float16)
    (found,) = run("Cast", x, [], [np.float32], to=1)
    np.testing.assert_array_equal(found, x.astype(np.float32))


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize(("shape", "axis"), [((40,), None), ((3, 5, 40), 1), ((3, 5, 40), 2), ((7, 4), 0)])
def test_to_bytes_and_back(kind, shape, axis):
    rng, count = np.random.default_rng(0), 1 if axis is None else shape[axis]
    x = nets.weights(int(np.prod(shape)), 1).reshape(shape) * np.float32(300)
    # Halves, to be rounded to even.
    x.reshape(-1)[::3] = np.rint(x.reshape(-1)[::3]) * np.float32(0.5)
    scale = rng.choice(np.array([0.5, 1, 2], np.float32), count)
    zero = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, count, endpoint=True).astype(kind)
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    column = (slice(None), *[None] * (len(shape) - 1 - (axis or 0))) if axis is not None else ()
    limits = np.iinfo(kind)
    attrs = {"axis": axis} if axis is not None else {}
    (found,) = run("QuantizeLinear", x, [scale, zero], [kind], **attrs)
    expected = np.clip(np.rint(x / scale[column]) + zero[column], limits.min, limits.max).astype(kind)
    np.testing.assert_array_equal(found, expected)
    (back,) = run("DequantizeLinear", found, [scale, zero], [np.float32], **attrs)
    np.testing.assert_array_equal(back, (found.astype(np.float32) - zero[column]) * scale[column])


@pytest.mark.parametrize("x", [[0.0, 2, -3, -2.5, 1.34, 0.5], [1.0, 2, 3], [-5.0] * 40, [0.0] * 3, [1e30, -1e30, 0]])
def test_a_range_of_its_own(x):
    x = np.array(x, np.float32)
    found = run("DynamicQuantizeLinear", x, [], [np.uint8, np.float32, np.uint8])
    low, high = np.float32(min(x.min(), 0)), np.float32(max(x.max(), 0))
    scale = np.float32((high - low) / np.float32(255)) or np.float32(1)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    for value, expected in zip(found, (np.clip(np.rint(x / scale) + zero, 0, 255), scale, zero), strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(("kind", "mode"), [(np.uint8, "nearest"), (np.float64, "nearest"), (np.float32, "linear")])
def test_resizing_without_a_kernel(kind, mode):
    """Of another dtype, or along an axis too long for a table."""
    long = mode == "linear"
    x = np.arange(40_000 if long else 12).astype(kind).reshape((1, -1) if long else (3, 4))
    node = nets.node("Resize", ["x", "", "scales"], ["y"], mode=mode, coordinate_transformation_mode="asymmetric")
    scales = {"scales": np.array([1, 2], np.float32)}
    model = nets.model([node], {"x": (kind, x.shape)}, {"y": (kind, None)}, scales, opset=21)
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    (found,) = session.run(None, {"x": x})
    assert session.report({"x": x.shape})["steps"][0]["runs"] == "numpy"
    exact = np.clip(np.arange(2 * x.shape[1]) / 2, 0, x.shape[1] - 1)
    # The nearest is the lower one where two are as near.
    places = exact if long else np.ceil(exact - 0.5)
    np.testing.assert_array_equal(found, (np.zeros((len(x), 1)) + places if long else x[:, places.astype(int)]))
