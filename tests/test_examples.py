"""The example scripts run as their docstrings say, on a few digits, and write files that load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import hashinfer

MODELS = Path(__file__).parent.parent / "models"
SCRIPTS = MODELS / "examples"


def run(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:__main__", SCRIPTS / name, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def digits(tmp_path: Path) -> tuple[str, ...]:
    image, label = np.load(MODELS / "mnist-test-1k.npy"), np.load(MODELS / "mnist-test-1k-labels.npy")
    np.save(tmp_path / "x.npy", image[:300])
    np.save(tmp_path / "y.npy", label[:300])
    return ("--images", str(tmp_path / "x.npy"), "--labels", str(tmp_path / "y.npy"))


@pytest.mark.parametrize("name", ["train.py", "compress.py"])
def test_training_and_compressing(name, digits, tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "net.hnet"
    text = run(name, *digits, "-o", out, "--epochs", 12)
    assert f"wrote {out}" in text
    image, label = np.load(tmp_path / "x.npy"), np.load(tmp_path / "y.npy")
    assert float((hashinfer.InferenceSession(out)(image).argmax(1) == label).mean()) > 0.8
    assert "float32[300, 10]" in run("run.py", out, tmp_path / "x.npy")


def test_exporting(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "text.hnet"
    numbers = int(run("export.py", "-o", out).split(": ")[1].split()[0].replace(",", ""))
    assert numbers == 40_000 + 1024 + 256 + 4 * 257
    ids = np.random.default_rng(0).integers(0, 20_000, (5, 12))
    assert hashinfer.InferenceSession(out)(ids).shape == (5, 4)


def test_the_tutorial(tmp_path):
    pytest.importorskip("torch")
    text = run("tutorial.py", "--out", tmp_path, "--epochs", 15)
    assert [line[:2] for line in text.splitlines() if line[:1].isdigit()] == [f"{k}." for k in range(1, 7)]
    errors = [float(line.split("error")[1].split("%")[0]) for line in text.splitlines() if "us a digit" in line]
    assert len(errors) == 2
    assert max(errors) < 25
    assert (tmp_path / "hashed.hnet").stat().st_size < (tmp_path / "dense.onnx").stat().st_size / 8
    assert (tmp_path / "digits.o").stat().st_size > 0
