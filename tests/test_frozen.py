"""Files of format version 1, frozen: every later engine reads them to the same outputs. See frozen/make.py."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import hashinfer
from hashinfer.schemes import DOMAIN
from tests.frozen import make

FOLDER = Path(__file__).parent / "frozen"
NAMES = sorted(path.stem for path in FOLDER.glob("*.hnet"))


def arrays(name: str, what: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key.removeprefix(what): file[key] for key in file.files if key.startswith(what)}


def test_the_set_is_what_it_was():
    """A file that changes, or goes, breaks the promise; new ones come through frozen/make.py."""
    sums = dict(reversed(line.split("  ")) for line in (FOLDER / "SHA256SUMS").read_text().splitlines())
    found = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in FOLDER.iterdir() if p.suffix in (".hnet", ".npz")
    }
    assert found == sums
    assert set(NAMES) == set(make.CASES)
    assert sum(p.stat().st_size for p in FOLDER.iterdir() if p.is_file()) < 300_000


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_file_gives_its_outputs(name):
    feed, expected = arrays(name, "in "), arrays(name, "out ")
    for threads in (1, 2):
        with hashinfer.InferenceSession(FOLDER / f"{name}.hnet", threads=threads) as session:
            found = dict(zip([v.name for v in session.get_outputs()], session.run(None, feed), strict=True))
        assert set(found) == set(expected)
        for key, value in expected.items():
            if name.startswith("matrix"):
                assert np.array_equal(found[key], value)
            np.testing.assert_allclose(found[key], value, atol=2e-6 * np.abs(value).max(), rtol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_its_bodies_say_the_same(name):
    """Any ONNX runtime reads it, so that even without this engine no frozen file is lost."""
    model = onnx.load(FOLDER / f"{name}.hnet")
    assert {o.domain: o.version for o in model.opset_import}[DOMAIN] == 1
    if not model.functions:
        pytest.skip("it carries no bodies, as a file may")
    expected = arrays(name, "out ")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for key, value in zip(expected, theirs.run(list(expected), arrays(name, "in ")), strict=True):
        np.testing.assert_allclose(value, expected[key], atol=2e-6 * np.abs(expected[key]).max(), rtol=1e-6)
