"""What the tests of the recipes for more than one process share."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import ModuleType

import numpy as np

import hashinfer

MODELS = Path(__file__).parent.parent / "models"
MODEL = MODELS / "mnist-dyadic-64x.hnet"


def recipe(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(name, MODELS / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_digits(path: Path, rows: int) -> int:
    """The sample over and over, each time turned by one more; returns the bytes."""
    digits = np.load(MODELS / "mnist-test-1k.npy")
    source = np.lib.format.open_memmap(path, "w+", np.uint8, (rows, 28, 28))
    for start in range(0, rows, len(digits)):
        source[start : start + len(digits)] = np.roll(digits, start // len(digits), axis=0)
    source.flush()
    return int(source.nbytes)


def wait_for_parts(folder: Path, count: int) -> None:
    """Until that many parts are written."""
    while len(list(folder.glob("*/*.npy"))) < count:
        time.sleep(0.01)


def check_scores(target: Path, rows: int) -> None:
    """Every row of write_digits is scored once, in order, and nothing else is left in the folder."""
    digits, scores = np.load(MODELS / "mnist-test-1k.npy"), np.load(target, mmap_mode="r")
    assert scores.shape == (rows, 10)
    expected = hashinfer.InferenceSession(MODEL, threads=1)(digits)
    for start in range(0, rows, len(digits)):
        found = scores[start : start + len(digits)]
        np.testing.assert_allclose(found, np.roll(expected, start // len(digits), axis=0), rtol=0, atol=1e-3)
    assert [p.name for p in target.parent.iterdir()] == [target.name]
