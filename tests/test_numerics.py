"""Whole nets of every scale against float64: the kernels' bounds, carried from layer to layer, hold for the outputs.

test_kernels holds each kernel to its bound; here nets are made by hypothesis, and run through a session.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import hashinfer
from hashinfer.model.write import expand_node
from hashinfer.schemes import Dyadic, Scheme
from tests import naive, nets
from tests.naive import EPS
from tests.nets import node
from tests.test_kernels import elementwise_bound, transform_bound

F32 = np.float32
LARGEST = 1e37
TINY = 2.0**-149


class Net:
    """Hashed layers with biases, ReLU between them. w and b: of each layer, in float32."""

    def __init__(self, schemes: list[Scheme], w: list[np.ndarray], b: list[np.ndarray]) -> None:
        self.schemes, self.w, self.b = schemes, w, b
        self.dense = [naive.virtual(s, v.astype(np.float64)) for s, v in zip(schemes, w, strict=True)]

    def session(self, threads: int) -> hashinfer.InferenceSession:
        nodes, constants, current = [], {}, "x"
        for k, scheme in enumerate(self.schemes):
            constants |= {f"w{k}": self.w[k], f"b{k}": self.b[k]}
            last = k == len(self.schemes) - 1
            nodes += [
                expand_node(scheme, f"w{k}", f"W{k}"),
                node("MatMul", [current, f"W{k}"], [f"m{k}"]),
                node("Add", [f"m{k}", f"b{k}"], ["y" if last else f"a{k}"]),
            ]
            if not last:
                nodes.append(node("Relu", [f"a{k}"], [f"r{k}"]))
            current = f"r{k}"
        sizes = self.schemes[0].rows, self.schemes[-1].cols
        model = nets.model(nodes, {"x": (F32, ["N", sizes[0]])}, {"y": (F32, ["N", sizes[1]])}, constants)
        return hashinfer.InferenceSession(model.SerializeToString(), threads=threads)

    def exact(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """y in float64; how far the engine's may be from it; the largest sum of magnitudes on the way."""
        value, error, largest = x.astype(np.float64), np.zeros(x.shape), 0.0
        for k, (scheme, dense, b) in enumerate(zip(self.schemes, self.dense, self.b, strict=True)):
            # The kernel sees an input that is off by `error` at most; its bound grows with what it sees.
            seen = np.abs(value) + error
            own = elementwise_bound(seen, dense)
            if isinstance(scheme, Dyadic):
                own = np.maximum(own, _transform_bound(scheme, self.w[k], value, error))
            largest = max(
                largest, float((seen @ np.abs(dense)).max(initial=0)), float(np.abs(b).max()), seen.max(initial=0)
            )
            error = error @ np.abs(dense) + own + TINY * len(dense)
            value = value @ dense + b.astype(np.float64)
            error = error + 2 * EPS * (np.abs(value) + error + np.abs(b))
            if k < len(self.schemes) - 1:
                value = np.maximum(value, 0)
        return value, error, largest


def _transform_bound(scheme: Dyadic, w: np.ndarray, value: np.ndarray, error: np.ndarray) -> np.ndarray:
    """transform_bound for any input within `error` of value: the norms of what is folded add up at most."""
    folded = np.zeros((len(error), scheme.width))
    for i in range(scheme.rows):
        folded[:, i % scheme.width] += error[:, i]
    steps = 4 * (np.log2(scheme.width) + 2) + scheme.rows / scheme.width
    groups = np.linalg.norm(w.astype(np.float64).reshape(scheme.groups, scheme.width), axis=1)
    more = EPS * steps * np.linalg.norm(folded, axis=1)[:, None] * groups[np.arange(scheme.cols) % scheme.groups]
    return transform_bound(scheme, w.astype(np.float64), value) + more


def numbers(rng: np.random.Generator, shape: Any, kind: str, exponent: int) -> np.ndarray:
    """float32 numbers: of one scale, over many decades, denormal, or one of them alone."""
    normal = rng.standard_normal(shape)
    with np.errstate(under="ignore", over="ignore"):
        if kind == "decades":
            return (normal * 10.0 ** rng.uniform(-12, 6, shape)).astype(F32)
        if kind == "denormal":
            return (normal * 1e-41).astype(F32)
        if kind == "one-hot":
            out = np.zeros(shape, F32)
            flat = out.reshape(-1, shape[-1] if isinstance(shape, tuple) else shape)
            flat[np.arange(len(flat)), rng.integers(0, flat.shape[1], len(flat))] = F32(10.0**exponent)
            return out
        if kind == "sparse":
            return np.where(rng.random(shape) < 0.9, 0, normal * 10.0**exponent).astype(F32)
        return (normal * 10.0**exponent).astype(F32)


KINDS = st.sampled_from(["normal", "normal", "decades", "denormal", "one-hot", "sparse"])
EXPONENTS = st.integers(-30, 30)


@st.composite
def made(draw: st.DrawFn) -> tuple[Net, np.ndarray, np.random.Generator]:
    """A net and a batch for it."""
    sizes = draw(st.lists(st.integers(1, 70), min_size=2, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    schemes: list[Scheme] = []
    w, b = [], []
    for k, (rows, cols) in enumerate(itertools.pairwise(sizes)):
        name = draw(st.sampled_from(["dyadic", "dyadic", "xxh32"]))
        budget = draw(st.integers(1, rows * cols))
        block = draw(st.sampled_from([1, 4, 16])) if name == "xxh32" else None
        scheme = nets.scheme(name, rows, cols, budget, k + 1, None if block is None else min(block, budget))
        schemes.append(scheme)
        w.append(numbers(rng, scheme.buckets, draw(KINDS), draw(EXPONENTS)))
        b.append(numbers(rng, cols, draw(KINDS), draw(EXPONENTS)))
    rows = draw(st.sampled_from([1, 2, 5, 20]))
    return Net(schemes, w, b), numbers(rng, (rows, sizes[0]), draw(KINDS), draw(EXPONENTS)), rng


@settings(max_examples=150, deadline=None)
@given(made())
def test_nets_of_any_scale_stay_within_their_bound(drawn):
    net, x, _ = drawn
    expected, error, largest = net.exact(x)
    assume(largest < LARGEST)
    with net.session(1) as session:
        y = session(x)
    assert y.dtype == F32
    excess = np.abs(y - expected) - error
    assert (excess <= 0).all(), f"over by {excess.max()}, where the bound is {error.flat[excess.argmax()]}"
    with net.session(2) as session:
        assert np.array_equal(session(x), y)


@settings(max_examples=100, deadline=None)
@given(made(), st.sampled_from(["x", "w", "b"]), st.sampled_from([np.nan, np.inf, -np.inf]), st.data())
def test_nan_and_inf_go_through_a_net_as_through_the_dense_one(drawn, where, odd, data):
    """Values of one scale, so that nothing overflows by itself; one odd number somewhere."""
    net, x, rng = drawn
    layer = data.draw(st.integers(0, len(net.schemes) - 1))
    w = [numbers(rng, v.size, "normal", 0) for v in net.w]
    b = [numbers(rng, v.size, "normal", 0) for v in net.b]
    x = numbers(rng, x.shape, "normal", 0)
    spoiled = {"x": x, "w": w[layer], "b": b[layer]}[where]
    spoiled.reshape(-1)[data.draw(st.integers(0, spoiled.size - 1))] = odd
    net = Net(net.schemes, w, b)
    value = x.astype(np.float64)
    with np.errstate(all="ignore"):
        for k, dense in enumerate(net.dense):
            value = naive.matmul(value, dense) + b[k]
            if k < len(net.dense) - 1:
                value = np.maximum(value, 0)
    with net.session(1) as session:
        y = session(x)
    assert np.array_equal(np.isnan(y), np.isnan(value))
    assert np.array_equal(np.isposinf(y), np.isposinf(value))
    assert np.array_equal(np.isneginf(y), np.isneginf(value))
