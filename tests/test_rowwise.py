"""Rows and activations as kernels: within their bounds of float64, and as NumPy where not finite."""

from __future__ import annotations

import math

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hashinfer
from tests import nets

EPS = float(np.finfo(np.float32).eps)
SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 40))
SCALES = st.sampled_from([1e-30, 1e-3, 1.0, 30.0, 1e4])


def run(
    op: str, x: np.ndarray, constants: dict[str, np.ndarray] | None = None, opset: int = nets.OPSET, **attrs: object
) -> np.ndarray:
    """The op's output; its step must run as a kernel."""
    node = nets.node(op, ["x", *(constants or {})], ["y"], **attrs)
    model = nets.model([node], {"x": (np.float32, x.shape)}, {"y": (np.float32, x.shape)}, constants or {}, opset)
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    (step,) = session.report()["steps"]
    assert step["runs"] == "native"
    return session(x)


def values(shape: tuple[int, ...], scale: float) -> np.ndarray:
    return nets.weights(math.prod(shape), sum(shape)).reshape(shape) * np.float32(scale)


@settings(max_examples=40, deadline=None)
@given(SHAPES, SCALES, st.integers(-1, 2).filter(lambda axis: axis in (-1, 2)))
def test_softmax(shape, scale, axis):
    x = values(shape, scale)
    wide = x.astype(np.float64)
    below = wide.max(-1, keepdims=True) - wide
    exact = np.exp(-below) / np.exp(-below).sum(-1, keepdims=True)
    found = run("Softmax", x, axis=axis)
    least = float(np.finfo(np.float32).smallest_normal)
    assert (np.abs(found - exact) <= (4 + below) * EPS * exact + least).all()


@settings(max_examples=40, deadline=None)
@given(SHAPES, SCALES, st.integers(1, 2), st.booleans())
def test_layer_normalization(shape, scale, axis, biased):
    x, row = values(shape, scale) + np.float32(scale), shape[axis:]
    constants = {"scale": values(row, 1.0)}
    if biased:
        constants["bias"] = values(row, 2.0)
    wide, axes = x.astype(np.float64), tuple(range(axis, 3))
    deviation = np.sqrt(wide.var(axes, keepdims=True) + np.float32(1e-5))
    exact = (wide - wide.mean(axes, keepdims=True)) / deviation * constants["scale"] + constants.get("bias", 0)
    found = run("LayerNormalization", x, constants, axis=axis)
    size = np.abs(wide).max(axes, keepdims=True) / deviation
    allowed = 4 * EPS * (size + 1) * np.abs(constants["scale"]) + 2 * EPS * np.abs(exact)
    assert (np.abs(found - exact) <= allowed + 1e-37).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@settings(max_examples=30, deadline=None)
@given(SHAPES, SCALES)
def test_gelu(approximate, shape, scale):
    x = values(shape, scale)
    wide = x.astype(np.float64)
    if approximate == "none":
        exact = np.array([0.5 * v * math.erfc(-v / math.sqrt(2)) for v in wide.ravel()]).reshape(shape)
    else:
        exact = 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    assert (np.abs(run("Gelu", x, approximate=approximate) - exact) <= 8 * EPS * np.abs(wide) + 1e-37).all()


@settings(max_examples=40, deadline=None)
@given(SHAPES, SCALES)
def test_log_softmax(shape, scale):
    x = values(shape, scale)
    wide = x.astype(np.float64)
    below = wide.max(-1, keepdims=True) - wide
    log_sum = np.log(np.exp(-below).sum(-1, keepdims=True))
    found = run("LogSoftmax", x)
    assert (np.abs(found + below + log_sum) <= 4 * EPS * (1 + below + log_sum)).all()


@settings(max_examples=40, deadline=None)
@given(SHAPES, SCALES)
def test_instance_normalization(shape, scale):
    x, channels = values(shape, scale) + np.float32(scale), shape[1:2]
    constants = {"scale": values(channels, 1.0), "bias": values(channels, 2.0)}
    wide = x.astype(np.float64)
    deviation = np.sqrt(wide.var(-1, keepdims=True) + np.float32(1e-5))
    column = {name: value.reshape(-1, 1) for name, value in constants.items()}
    exact = (wide - wide.mean(-1, keepdims=True)) / deviation * column["scale"] + column["bias"]
    found = run("InstanceNormalization", x, constants)
    size = np.abs(wide).max(-1, keepdims=True) / deviation
    assert (np.abs(found - exact) <= 4 * EPS * (size + 1) * np.abs(column["scale"]) + 2 * EPS * np.abs(exact)).all()


def stable_logistic(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    return np.where(x < 0, e, 1) / (1 + e)


ACTIVATIONS = {
    "Erf": ({}, np.vectorize(math.erf, otypes=[float])),
    "Sigmoid": ({}, stable_logistic),
    "Swish": ({"alpha": 1.5}, lambda x: x * stable_logistic(1.5 * x)),
    "HardSwish": ({}, lambda x: x * np.clip(x / 6 + 0.5, 0, 1)),
    "HardSigmoid": ({"alpha": 0.25, "beta": 0.625}, lambda x: np.clip(0.25 * x + 0.625, 0, 1)),
    "LeakyRelu": ({"alpha": 0.125}, lambda x: np.where(x < 0, 0.125 * x, x)),
    "ThresholdedRelu": ({"alpha": 0.5}, lambda x: np.where(x > 0.5, x, 0)),
    "Softsign": ({}, lambda x: x / (1 + np.abs(x))),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@settings(max_examples=20, deadline=None)
@given(SHAPES, SCALES)
def test_activation(name, shape, scale):
    attrs, exact = ACTIVATIONS[name]
    x = values(shape, scale)
    wide = x.astype(np.float64)
    # The float32 product alpha x moves the exponent of Swish by its own rounding.
    size = np.maximum(np.abs(exact(wide)), np.minimum(np.abs(wide), 1.0) if name in ("HardSigmoid", "HardSwish") else 0)
    slack = 4 + (np.abs(wide) if name == "Swish" else 0)
    found = run(name, x, opset=24 if name == "Swish" else nets.OPSET, **attrs)
    assert (np.abs(found - exact(wide)) <= slack * EPS * size + 1e-37).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_what_is_not_finite(name):
    attrs, _ = ACTIVATIONS[name]
    x = np.array([[[np.nan, np.inf, -np.inf, 0.0]]], np.float32)
    found = run(name, x, opset=24 if name == "Swish" else nets.OPSET, **attrs)[0, 0]
    assert np.isnan(found[0]) == (name != "ThresholdedRelu")
    at_ends = {"LeakyRelu": -np.inf, "Erf": -1, "Sigmoid": 0, "HardSigmoid": 0, "ThresholdedRelu": 0}
    if name in at_ends:
        assert found[2] == at_ends[name]
        assert found[1] == (np.inf if "Relu" in name else 1)


@pytest.mark.parametrize("row", [[np.nan, 1, 2], [np.inf, 1, 2], [-np.inf, 1, 2], [3e38, -3e38, 0], [-np.inf] * 3])
def test_what_is_not_finite_goes_where_numpy_sends_it(row):
    x = np.array([[row, [1, 2, 3]]], np.float32)
    with np.errstate(all="ignore"):
        e = np.exp(x - x.max(-1, keepdims=True))
        softmax = e / e.sum(-1, keepdims=True)
    np.testing.assert_allclose(run("Softmax", x, axis=-1), softmax, rtol=1e-6)
    found = run("LayerNormalization", x, {"scale": np.ones(3, np.float32)})
    assert np.isnan(found[0, 0]).all() == (not np.isfinite(x[0, 0]).all())
    np.testing.assert_allclose(found[0, 1], [-1.224736, 0, 1.224736], rtol=1e-5)
    finite = np.isfinite(run("Gelu", x))
    assert finite[0, 1].all()


def test_long_inputs_are_cut_into_tiles_that_threads_share():
    x = values((300, 7, 64), 3.0)
    node = [nets.node("Softmax", ["x"], ["s"]), nets.node("Gelu", ["s"], ["y"])]
    model = nets.model(node, {"x": (np.float32, x.shape)}, {"y": (np.float32, x.shape)}, {}).SerializeToString()
    one, three = (hashinfer.InferenceSession(model, threads=n)(x) for n in (1, 3))
    assert np.array_equal(one, three)
    theirs = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    np.testing.assert_allclose(one, theirs, rtol=1e-4, atol=1e-7)


def test_zero_rows():
    assert run("Softmax", np.zeros((0, 4), np.float32)).shape == (0, 4)
