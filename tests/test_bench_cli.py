"""`hashinfer bench`, as a user meets it. What it measures is held for shape and sense, never for a time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hashinfer.cli.cold import STAGES
from hashinfer.plan.profile import Profile
from hashinfer.session.session import InferenceSession
from tests import nets
from tests.processes import unmeasured
from tests.test_cli import COMMAND, ok, run

QUICK = ("--seconds", 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bench")
    (made / "net.hnet").write_bytes(nets.hashed_mlp([12, 20, 5], "dyadic", 4).SerializeToString())
    np.save(made / "x.npy", nets.weights(30 * 12, 9).reshape(30, 12))
    fixed = nets.model(
        [nets.node("Add", ["x", "x"], ["s"]), nets.node("NonZero", ["s"], ["y"])],
        {"x": (np.float32, [2, 3])},
        {"y": (np.int64, None)},
        {},
    )
    (made / "fixed.onnx").write_bytes(fixed.SerializeToString())
    return made


def bench(*arguments: object) -> dict:
    return json.loads(ok("bench", *arguments, *QUICK, "--json"))


def test_every_part_is_there(folder: Path) -> None:
    data = bench(folder / "net.hnet", folder / "x.npy", "--batch", 1, "--batch", 64, "--threads", 1, "--threads", 2)
    assert data["seed"] is None
    assert data["file_bytes"] == (folder / "net.hnet").stat().st_size
    assert [(c["batch"], c["threads"]) for c in data["warm"]] == [(1, 1), (64, 1), (1, 2), (64, 2)]
    for case in data["warm"]:
        t = case["hashinfer"]
        assert t["calls"] >= 3
        assert 0 < t["p25_us"] <= t["p50_us"] <= t["p90_us"] <= t["p99_us"]
        assert "against" not in case
    assert set(data["cold"]["ms"]) == set(STAGES)
    assert min(data["cold"]["ms"].values()) > 0
    assert "first_ms" not in data["cold"]
    if sys.platform == "linux":
        memory = data["cold"]["memory_bytes"]
        assert memory["engine_floor"] > memory["engine_floor_anonymous"] > 0
        assert memory["peak_over_floor"] >= 0
        assert memory["anonymous_after_run"] >= memory["anonymous_after_load"]
    assert [p["batch"] for p in data["profiles"]] == [1, 64]
    for profile in data["profiles"]:
        steps = profile["steps"]
        assert [s["op"] for s in steps] == ["ExpandDyadic+MatMul+Add+Relu", "ExpandDyadic+MatMul+Add"]
        assert all(s["runs"] == "native" and s["kernel"] for s in steps)
        whole = sum(s["us"] for s in steps) + profile["overhead_us"]
        assert whole == pytest.approx(profile["run_us"])


def test_rows_are_taken_in_turn(folder: Path) -> None:
    from hashinfer.cli.bench import _cases

    session = InferenceSession(folder / "net.hnet", threads=1)
    x = np.load(folder / "x.npy")
    cases = dict(_cases(session, {"x": x}, (2, 64), (), 0))
    np.testing.assert_array_equal(cases[2]["x"], x[:2])
    np.testing.assert_array_equal(cases[64]["x"], np.concatenate([x, x, x[:4]]))


def test_beside_onnxruntime(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    data = bench(folder / "net.hnet", "--against", "onnxruntime", "--batch", 3, "--seed", 5)
    assert data["seed"] == 5
    assert data["against"]["name"].startswith("onnxruntime ")
    assert 0 <= data["against"]["largest_difference"] < 1e-5
    (case,) = data["warm"]
    assert case["against"]["calls"] >= 3
    faster = case["times_faster"]
    assert 0 < faster["p25"] <= faster["median"] <= faster["p75"]


def test_other_answers_are_not_timed(folder: Path) -> None:
    pytest.importorskip("onnxruntime")
    # Where the two sum in another order the last bits differ: a tolerance of nothing finds that.
    done = run("bench", folder / "net.hnet", "--against", "onnxruntime", "--tolerance", 0, *QUICK)
    assert done.returncode == 1
    assert not done.stdout
    assert b"mismatch: onnxruntime" in done.stderr


def test_for_people(folder: Path) -> None:
    text = ok("bench", folder / "net.hnet", "--first", *QUICK)
    for words in ("random, seed 0", "Cold start", "kernels compiled", "p99", "engine floor", "overhead", "whole run"):
        assert words in text
    assert "batch 64" in text


def test_a_model_of_one_shape_and_a_fallback(folder: Path) -> None:
    data = bench(folder / "fixed.onnx")
    (case,), (profile,) = data["warm"], data["profiles"]
    assert case["batch"] is None
    assert {s["op"]: s["runs"] for s in profile["steps"]}["NonZero"] == "reference"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.hnet"], "No such file"),
        (["fixed.onnx", "--batch", 2], "no open first dimension"),
        (["net.hnet", "--batch", 0], "--batch"),
        (["net.hnet", "--threads", 0], "--threads"),
        (["net.hnet", "--against", "tract"], "--against"),
        (["net.hnet", "--shape", "x=3,4"], "expected [N, 12]"),
        (["net.hnet", "--shape", "z=3"], "no input 'z'"),
        (["net.hnet", "none.npy"], "none.npy"),
        (["net.hnet", "double.npy"], "expected float32"),
        (["net.hnet", "empty.npy"], "no rows"),
        (["net.hnet", "net.hnet"], "net.hnet"),
    ],
)
def test_bad_input_is_one_line(folder: Path, arguments: list[object], words: str) -> None:
    np.save(folder / "double.npy", np.ones((2, 12)))
    np.save(folder / "empty.npy", np.ones((0, 12), np.float32))
    done = run("bench", *(folder / a if "." in str(a) else a for a in arguments), *QUICK)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 2
    assert lines[-1].startswith("hashinfer: error: ")
    assert words in lines[-1]
    assert not done.stdout
    assert "Traceback" not in done.stderr.decode()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are another matter there")
def test_interrupted(folder: Path) -> None:
    words = [*COMMAND, "bench", str(folder / "net.hnet"), "--seconds", "3600", "--batch", "1"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # Under coverage an interrupt may arrive inside its tracer, and be lost there.
    with subprocess.Popen(words, **pipes, env=unmeasured(), start_new_session=True) as process:
        time.sleep(10)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert not out
    assert b"Traceback" not in err


def test_profile_of_a_session() -> None:
    session = InferenceSession(nets.hashed_mlp([12, 20, 5], "xxh32", 4).SerializeToString(), threads=2)
    profile = session.profile({"x": nets.weights(24).reshape(2, 12)}, repeats=5)
    assert isinstance(profile, Profile)
    assert profile.repeats == 5
    assert len(profile.steps) == 2
    assert all(step.ns >= 0 for step in profile.steps)
    assert sum(s.ns for s in profile.steps) + profile.overhead_ns == pytest.approx(profile.run_ns)
    with pytest.raises(ValueError, match="repeats"):
        session.profile({"x": nets.weights(24).reshape(2, 12)}, repeats=0)
    with pytest.raises(ValueError, match="expected"):
        session.profile({"x": nets.weights(24).reshape(3, 8)})
