"""The shipped models: they load, answer real digits as well as their cards say, and as onnxruntime does."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import hashinfer
from hashinfer.errors import InputError

MODELS = Path(__file__).parent.parent / "models"
NAMES = ("mnist-dyadic-64x", "mnist-xxh32-64x", "mnist-dyadic-8x", "mnist-xxh32-8x")
FIVE_LAYERS = ("mnist-5l-dyadic-64x", "rot-5l-dyadic-64x")
DERIVED = ("mnist-dyadic-64x-int8", "mnist-cnn-64x", *FIVE_LAYERS)
NUMBERS_ALLOWED = {"64x": 12_422, "8x": 99_376}
ERROR_ALLOWED = {"64x": 3.0, "8x": 1.6}
POINTS = 0.05


def there(name: str) -> Path:
    path = MODELS / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return np.load(there("mnist-test-1k.npy"))


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    return np.load(there("mnist-test-1k-labels.npy"))


def card_error(name: str, what: str) -> float | None:
    """A percentage from the model's card, None where there is no such line."""
    found = re.search(rf"{what}.*?\|\D*?([\d.]+) %", there(f"{name}.md").read_text())
    return float(found.group(1)) if found else None


def test_the_sample_is_what_the_models_take(digits, labels):
    assert (digits.dtype, digits.shape) == (np.uint8, (1000, 28, 28))
    assert labels.shape == (1000,)
    assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("name", [*NAMES, *DERIVED])
def test_answers(name, digits, labels):
    session = hashinfer.InferenceSession(there(f"{name}.hnet"))
    ((_, kind, shape),) = [(v.name, v.type, v.shape) for v in session.get_inputs()]
    assert kind == "tensor(uint8)"
    assert shape[1:] == [28, 28]
    logits = session(digits)
    assert (logits.dtype, logits.shape) == (np.float32, (1000, 10))
    error = 100 * float((logits.argmax(1) != labels).mean())
    # It has learned digits at any angle, from a fifth of the images.
    assert error <= (16 if name.startswith("rot") else 5)
    stated = card_error(name, "test error, first 1,000")
    assert stated is not None, "the card does not say"
    assert abs(error - stated) <= POINTS
    one_by_one = np.concatenate([session(digits[k : k + 1]) for k in range(100)])
    np.testing.assert_allclose(one_by_one, logits[:100], atol=1e-3)


@pytest.mark.parametrize("name", [*NAMES, *DERIVED])
def test_onnxruntime_agrees(name, digits):
    path = there(f"{name}.hnet")
    logits = hashinfer.InferenceSession(path)(digits)
    theirs = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    expected = theirs.run(None, {theirs.get_inputs()[0].name: digits})[0]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-3)
    assert np.array_equal(logits.argmax(1), expected.argmax(1))


@pytest.mark.parametrize("name", NAMES)
def test_sizes_and_stated_error(name):
    report = hashinfer.InferenceSession(there(f"{name}.hnet")).report()
    _, scheme, ratio = name.split("-")
    hashed = [step["hashed"] for step in report["steps"] if "hashed" in step]
    assert [h["scheme"] for h in hashed] == [scheme] * 2
    assert [(h["rows"], h["cols"]) for h in hashed] == [(784, 1000), (1000, 10)]
    assert report["model"]["stored_numbers"] <= NUMBERS_ALLOWED[ratio]
    assert report["fallbacks"] == []
    assert report["fully_static"]
    stated = card_error(name, "test error, 10,000")
    assert stated is not None, "the card does not say"
    assert stated <= ERROR_ALLOWED[ratio]


@pytest.mark.parametrize("name", [*NAMES, *DERIVED])
def test_digits_of_another_kind_are_refused(name, digits):
    session = hashinfer.InferenceSession(there(f"{name}.hnet"))
    with pytest.raises(InputError, match=r"float32\[1000, 28, 28\]; expected uint8"):
        session(digits.astype(np.float32))
    with pytest.raises(InputError, match=r"shape \[1000, 784\]"):
        session(digits.reshape(1000, 784))


def test_every_model_is_tested_and_has_a_card():
    assert {path.stem for path in MODELS.glob("*.hnet")} == {*NAMES, *DERIVED}
    assert {path.stem for path in MODELS.glob("*.md")} == {*NAMES, *DERIVED}


def test_int8_weights_take_a_quarter_of_the_bytes():
    whole, narrow = (hashinfer.InferenceSession(there(f"mnist-dyadic-64x{end}.hnet")) for end in ("", "-int8"))
    layers = [[s["hashed"] for s in session.report()["steps"] if "hashed" in s] for session in (whole, narrow)]
    assert [(h["buckets"], h["seed"]) for h in layers[0]] == [(h["buckets"], h["seed"]) for h in layers[1]]
    assert {h["dtype"] for h in layers[1]} == {"int8"}
    assert there("mnist-dyadic-64x-int8.hnet").stat().st_size < 20_000


@pytest.mark.parametrize("name", FIVE_LAYERS)
def test_five_layers_store_what_the_benchmark_allows(name):
    report = hashinfer.InferenceSession(there(f"{name}.hnet")).report()
    hashed = [step["hashed"] for step in report["steps"] if "hashed" in step]
    assert [(h["rows"], h["cols"]) for h in hashed] == [(784, 1000), (1000, 1000), (1000, 1000), (1000, 10)]
    assert {h["scheme"] for h in hashed} == {"dyadic"}
    assert sum(h["buckets"] for h in hashed) <= 2_797_010 // 64
    assert report["fallbacks"] == []


def test_the_cnns_dense_layers_are_hashed():
    report = hashinfer.InferenceSession(there("mnist-cnn-64x.hnet")).report()
    hashed = [step["hashed"] for step in report["steps"] if "hashed" in step]
    assert [(h["rows"], h["cols"]) for h in hashed] == [(1568, 128), (128, 10)]
    assert report["fallbacks"] == []


@pytest.mark.parametrize("name", [*NAMES, *DERIVED])
def test_the_readme_has_the_figures_of_the_cards(name):
    lines = (MODELS.parent / "README.md").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"| [{name}]")]
    _, _, error, stored, size, _ = (cell.strip() for cell in row.split("|"))
    card = there(f"{name}.md").read_text()
    assert float(error.split()[0]) == float(re.search(r"\*\*([\d.]+) %\*\*", card)[1])
    assert stored.replace(" ", ",") in card
    assert size == f"{there(f'{name}.hnet').stat().st_size / 1024:.0f} KiB"
