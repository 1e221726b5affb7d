"""LSTM and GRU as kernels: against a float64 twin of the standard's equations, in every form that is native."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hashinfer
from tests import nets


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def naive(op: str, x: np.ndarray, w: Any, r: Any, b: Any, h: Any, c: Any, after: bool) -> tuple[np.ndarray, ...]:
    """One direction, steps first, float64: (states of all steps, last state, last cell)."""
    hidden = r.shape[1]
    gates = len(w) // hidden
    bw, br = (b[: gates * hidden], b[gates * hidden :]) if b is not None else (np.zeros(gates * hidden),) * 2
    states = []
    for step in x:
        mine, other = step @ w.T + bw, h @ r.T + br
        if op == "LSTM":
            i, o, f, g = np.split(mine + other, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            z, reset = np.split(sigmoid((mine + other)[:, : 2 * hidden]), 2, axis=1)
            last = other[:, 2 * hidden :] * reset
            if not after:
                last = (reset * h) @ r[2 * hidden :].T + br[2 * hidden :]
            h = (1 - z) * np.tanh(mine[:, 2 * hidden :] + last) + z * h
        states.append(h)
    return np.array(states).reshape(len(x), *h.shape), h, c


def made(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) / 2


@settings(max_examples=60, deadline=None)
@given(
    op=st.sampled_from(["LSTM", "GRU"]),
    sizes=st.tuples(st.integers(0, 5), st.integers(1, 3), st.integers(1, 20), st.integers(1, 18)),
    direction=st.sampled_from(["forward", "reverse", "bidirectional"]),
    biased=st.booleans(),
    initial=st.booleans(),
    layout=st.booleans(),
    after=st.booleans(),
    wanted=st.sampled_from([["y", "yh"], ["", "yh"], ["y"]]),
)
def test_every_native_form(op, sizes, direction, biased, initial, layout, after, wanted):
    steps, batch, inputs, hidden = sizes
    count, gates = 2 if direction == "bidirectional" else 1, 4 if op == "LSTM" else 3
    x = made(0, steps, batch, inputs)
    w, r = made(1, count, gates * hidden, inputs), made(2, count, gates * hidden, hidden)
    b = made(3, count, 2 * gates * hidden) if biased else None
    h0, c0 = (
        made(k, count, batch, hidden) if initial else np.zeros((count, batch, hidden), np.float32) for k in (4, 5)
    )
    every = []
    for d in range(count):
        backwards = direction == "reverse" or d == 1
        wide = [v.astype(np.float64) for v in (x[::-1] if backwards else x, w[d], r[d])]
        bias = None if b is None else b[d].astype(np.float64)
        y, h, _ = naive(op, *wide, bias, h0[d].astype(np.float64), c0[d].astype(np.float64), after)
        every.append((y[::-1] if backwards else y, h))
    expected = {"y": np.stack([e[0] for e in every], 1), "yh": np.stack([e[1] for e in every])}
    if layout:
        expected = {"y": expected["y"].transpose(2, 0, 1, 3), "yh": expected["yh"].transpose(1, 0, 2)}
        x, h0, c0 = x.transpose(1, 0, 2), h0.transpose(1, 0, 2), c0.transpose(1, 0, 2)
    constants = {"w": w, "r": r} | ({"b": b} if biased else {}) | ({"h0": h0} if initial else {})
    constants |= {"c0": c0} if initial and op == "LSTM" else {}
    names = ["x", "w", "r", "b" if biased else "", "", *(name for name in ("h0", "c0") if name in constants)]
    more = {"linear_before_reset": int(after)} if op == "GRU" else {}
    node = nets.node(op, names, wanted, direction=direction, hidden_size=hidden, layout=int(layout), **more)
    x = np.ascontiguousarray(x)
    outs = {name: (np.float32, expected[name].shape) for name in wanted if name}
    constants = {name: np.ascontiguousarray(value) for name, value in constants.items()}
    model = nets.model([node], {"x": (np.float32, x.shape)}, outs, constants)
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    (step,) = session.report()["steps"]
    assert step["runs"] == "native"
    for name, found in zip([n for n in wanted if n], session.run(None, {"x": x}), strict=True):
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("more", [{"clip": 1.0}, {"activations": ["Relu", "Tanh", "Tanh"]}, {"input_forget": 1}])
def test_other_forms_are_left_to_the_reference(more):
    w, r = made(1, 1, 16, 3), made(2, 1, 16, 4)
    node = nets.node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, **more)
    model = nets.model([node], {"x": (np.float32, [2, 1, 3])}, {"y": (np.float32, None)}, {"w": w, "r": r})
    session = hashinfer.InferenceSession(model.SerializeToString())
    assert session.report()["fallbacks"]


def test_a_batch_of_sequences_is_shared_by_threads():
    x, w, r = made(0, 30, 64, 32), made(1, 2, 256, 32), made(2, 2, 256, 64)
    node = nets.node("LSTM", ["x", "w", "r"], ["y", "h", "c"], hidden_size=64, direction="bidirectional")
    outs = dict.fromkeys(("y", "h", "c"), (np.float32, None))
    data = nets.model([node], {"x": (np.float32, x.shape)}, outs, {"w": w, "r": r}).SerializeToString()
    one, two = (hashinfer.InferenceSession(data, threads=n).run(None, {"x": x}) for n in (1, 2))
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    for mine, same, expected in zip(one, two, theirs, strict=True):
        assert np.array_equal(mine, same)
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    node = nets.node("GRU", ["x", "w", "r"], ["y"], hidden_size=4, name="cell")
    for w, r in ((made(1, 1, 12, 5), made(2, 1, 12, 4)), (made(1, 1, 12, 3), made(2, 1, 16, 4))):
        model = nets.model([node], {"x": (np.float32, [2, 1, 3])}, {"y": (np.float32, None)}, {"w": w, "r": r})
        session = hashinfer.InferenceSession(model.SerializeToString())
        with pytest.raises(hashinfer.OpError, match="GRU node 'cell'"):
            session.run(None, {"x": made(0, 2, 1, 3)})


def test_weights_that_are_inputs_are_taken_as_they_come():
    w, r, x = made(1, 1, 16, 3), made(2, 1, 16, 4), made(0, 5, 2, 3)
    kinds = {name: (np.float32, value.shape) for name, value in (("x", x), ("w", w), ("r", r))}
    node = nets.node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)
    data = nets.model([node], kinds, {"y": (np.float32, None)}, {}).SerializeToString()
    feed = {"x": x, "w": w, "r": r}
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feed)
    found = hashinfer.InferenceSession(data).run(None, feed)
    np.testing.assert_allclose(found[0], theirs[0], rtol=0, atol=1e-5)


def test_transposed_weights_are_counted_before_they_are_made():
    x, w, r = made(0, 2, 1, 300), made(1, 1, 1200, 300), made(2, 1, 1200, 300)
    node = nets.node("LSTM", ["x", "w", "r"], ["y"], hidden_size=300)
    data = nets.model([node], {"x": (np.float32, x.shape)}, {"y": (np.float32, None)}, {"w": w, "r": r})
    session = hashinfer.InferenceSession(data.SerializeToString(), threads=1)
    total = session.plan().total_bytes
    assert total >= 2 * (w.nbytes + r.nbytes)
    hashinfer.InferenceSession(data.SerializeToString(), threads=1, max_memory=total).run(None, {"x": x})
    with pytest.raises(hashinfer.MemoryLimitError):
        hashinfer.InferenceSession(data.SerializeToString(), threads=1, max_memory=total - 1).run(None, {"x": x})
