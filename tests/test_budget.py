"""A memory budget: what it may hold, that it is obeyed, and that answers stay what they were."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hashinfer
from hashinfer.errors import InputError, MemoryLimitError
from hashinfer.plan.budget import Offer, budget_bytes, chosen, free_memory, offers
from hashinfer.plan.planner import matrices
from hashinfer.session.session import InferenceSession
from tests import nets

SIZES = (300, 200, 40, 10)
MODEL = nets.hashed_mlp(SIZES, "xxh32", 8).SerializeToString()
LAYERS = [4 * a * b for a, b in itertools.pairwise(SIZES)]


def batch(rows: int) -> np.ndarray:
    return nets.weights(rows * SIZES[0]).reshape(rows, SIZES[0])


def held(session: InferenceSession) -> list[int]:
    """Bytes of the arrays of W that there are."""
    return [m._whole.nbytes for m in matrices(session._program) if m._whole is not None]


@pytest.mark.parametrize("budget", [0, 1, LAYERS[2], LAYERS[1], LAYERS[0] - 1, LAYERS[0], sum(LAYERS), 2**30])
def test_allocations_never_exceed_the_budget(budget):
    session = InferenceSession(MODEL, threads=1, memory_budget=budget)
    plain = InferenceSession(MODEL, threads=1)
    for rows in (1, 2, 5, 64):
        np.testing.assert_allclose(session(batch(rows)), plain(batch(rows)), rtol=1e-4, atol=1e-4)
    assert sum(held(session)) <= session.materialised_bytes <= budget
    assert session.weight_bytes == plain.weight_bytes + session.materialised_bytes
    assert session.report()["memory"]["materialised"] == session.materialised_bytes
    assert not held(plain)
    assert plain.materialised_bytes == 0


def test_all_of_it_is_spent_where_it_saves_time():
    session = InferenceSession(MODEL, threads=1, memory_budget=2**30)
    session(batch(1))
    assert sorted(held(session)) == sorted(LAYERS)
    steps = [s for s in session.report()["steps"] if "hashed" in s]
    assert all("memory budget" in s["reason"] and s["hashed"]["materialised"] for s in steps)


def test_what_saves_most_for_a_byte_comes_first():
    found = offers(InferenceSession(MODEL, threads=1).plan())
    gains = [offer.saved_ns / offer.bytes for offer in found]
    assert gains == sorted(gains, reverse=True)
    assert all(offer.saved_ns > 0 for offer in found)
    assert sorted(offer.bytes for offer in found) == sorted(LAYERS)


@given(st.lists(st.tuples(st.integers(1, 1000), st.floats(1, 1e6)), max_size=8), st.integers(0, 3000))
def test_any_choice_fits(found, budget):
    taken = chosen([Offer(None, size, ns) for size, ns in found], budget)  # type: ignore[arg-type]
    assert sum(offer.bytes for offer in taken) <= budget
    left = budget - sum(offer.bytes for offer in taken)
    assert all(offer in taken or offer.bytes > left for offer in (Offer(None, s, n) for s, n in found))  # type: ignore[arg-type]


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 40),
    name=st.sampled_from(["xxh32", "dyadic"]),
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4),
)
def test_answers_are_those_without_a_budget(rows, name, sizes):
    data = nets.hashed_mlp(sizes, name, 2).SerializeToString()
    x = nets.weights(rows * sizes[0]).reshape(rows, sizes[0])
    plain, rich = (InferenceSession(data, threads=1, memory_budget=b) for b in (None, "1GiB"))
    np.testing.assert_allclose(rich(x), plain(x), rtol=1e-3, atol=1e-3)


def test_a_dyadic_layer_that_is_faster_by_its_transform_is_not_held():
    data = nets.hashed_mlp((1024, 1024, 1024), "dyadic", 64).SerializeToString()
    assert InferenceSession(data, threads=1, memory_budget=2**30).materialised_bytes == 0


def test_int8_weights_are_held_scaled():
    models = Path(__file__).parent.parent / "models"
    digits = np.load(models / "mnist-test-1k.npy")[:50]
    plain = hashinfer.InferenceSession(models / "mnist-xxh32-64x.hnet", threads=1)
    rich = hashinfer.InferenceSession(models / "mnist-xxh32-64x.hnet", threads=1, memory_budget="50MB")
    np.testing.assert_allclose(rich(digits), plain(digits), rtol=0, atol=1e-3)
    assert rich.materialised_bytes > 0


def test_the_budget_counts_against_max_memory():
    plain = InferenceSession(MODEL, threads=1)
    need = plain.plan().total_bytes
    with pytest.raises(MemoryLimitError):
        InferenceSession(MODEL, threads=1, memory_budget=2**30, max_memory=need + 1000)(batch(1))


def test_pickles_keep_it():
    session = InferenceSession(MODEL, threads=1, memory_budget="1 MiB")
    copy = pickle.loads(pickle.dumps(session))
    assert copy.materialised_bytes == session.materialised_bytes > 0
    assert np.array_equal(copy(batch(3)), session(batch(3)))


@pytest.mark.parametrize(
    ("given_", "expected"),
    [(None, 0), (0, 0), (12345, 12345), ("8MiB", 2**23), ("8mb", 8 * 10**6), ("1.5 KiB", 1536), ("7", 7), ("2k", 2048)],
)
def test_sizes_are_read(given_, expected):
    assert budget_bytes(given_) == expected


def test_shares_are_of_the_free_memory():
    assert 0 < budget_bytes(0.25) <= free_memory()
    assert abs(budget_bytes("50%") - budget_bytes(0.5)) < 2**30


@pytest.mark.parametrize("wrong", [-1, 1.5, float("nan"), "much", "8 apples", "-3MB", "", True, [], "150%"])
def test_others_are_refused(wrong):
    with pytest.raises(InputError, match="memory_budget is"):
        InferenceSession(MODEL, memory_budget=wrong)


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hashinfer", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_commands(tmp_path):
    model, x, picture = tmp_path / "m.hnet", tmp_path / "x.npy", tmp_path / "trade.png"
    model.write_bytes(MODEL)
    np.save(x, batch(4))
    done = run("inspect", model, "--memory-budget", "1MiB", "--trade", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["memory"]["materialised"] == sum(LAYERS)
    points = report["trade"]
    assert points[0]["bytes"] == 0
    assert points[-1]["bytes"] == sum(LAYERS)
    assert all(p["us"] > 0 for p in points)
    assert run("run", model, x, "--memory-budget", "100%").returncode == 0
    assert run("bench", model, "--memory-budget", "1MiB", "--seconds", "0.05", "--batch", "1").returncode == 0
    wrong = run("run", model, x, "--memory-budget", "lots")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert run("inspect", model, "--picture", picture).returncode == 2
    pytest.importorskip("matplotlib")
    assert run("inspect", model, "--trade", "--picture", picture).returncode == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
