"""Real networks as PyTorch and scikit-learn export them: this engine's answers are onnxruntime's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hashinfer

torch = pytest.importorskip("torch")

from bench import exported  # noqa: E402


@pytest.mark.parametrize("name", exported.NETS)
def test_networks_from_pytorch(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    exported.export(name, path)
    ours, theirs = exported.sessions(path)
    for rows in (1, 5):
        x = exported.batch(name, rows)
        found, expected = ours.run(None, {"x": x})[0], theirs.run(None, {"x": x})[0]
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=exported.NETS[name].allowed * np.abs(expected).max())


def test_what_is_measured_has_a_row_for_each_network_and_batch() -> None:
    rows = exported.measure(0.01)
    assert [(row["net"], row["batch"]) for row in rows] == [(n, b) for n in exported.NETS for b in (1, 16)]
    assert all(us > 0 for row in rows for us in row["us"].values())


@pytest.mark.filterwarnings("ignore")
def test_models_from_scikit_learn(tmp_path: Path) -> None:
    skl2onnx = pytest.importorskip("skl2onnx")
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 12)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0.5)
    for model in (LogisticRegression(), make_pipeline(StandardScaler(), MLPClassifier((20,), max_iter=60))):
        proto = skl2onnx.to_onnx(model.fit(x, y), x[:1], options={"zipmap": False})
        data = proto.SerializeToString()
        theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        expected = theirs.run(None, {"X": x})
        found = hashinfer.InferenceSession(data).run(None, {"X": x})
        assert np.array_equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-5)
