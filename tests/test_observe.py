"""What can be seen of a session at work: log lines, the plan and the profile as data, traces."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from click.testing import CliRunner

import hashinfer
from hashinfer.cli.app import app
from tests import nets

X = nets.weights(24).reshape(2, 12)


def session() -> hashinfer.InferenceSession:
    return hashinfer.InferenceSession(nets.hashed_mlp([12, 9, 5], "dyadic", 2).SerializeToString(), threads=1)


def test_loads_and_plans_are_logged(caplog):
    with caplog.at_level(logging.INFO, "hashinfer"):
        made = session()
        for _ in range(3):
            made(X)
    loaded, planned = (record.getMessage() for record in caplog.records)
    assert "loaded a model of" in loaded
    assert f"2 steps, {made.weight_bytes} bytes of weights, 1 threads" in loaded
    assert "planned for float32[2, 12]: steps 2 native" in planned
    assert {record.name for record in caplog.records} == {"hashinfer"}


def test_steps_are_logged_for_debugging(caplog):
    with caplog.at_level(logging.DEBUG, "hashinfer"):
        session()(X)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert len(lines) == 2
    assert "ExpandDyadic+MatMul+Add+Relu node" in lines[0]
    assert ": native, dyadic_row_f32: Walsh-Hadamard" in lines[0]


def test_nothing_is_said_unless_asked(capfd):
    session()(X)
    assert capfd.readouterr() == ("", "")


def test_a_profile_is_data():
    profile = session().profile({"x": X}, repeats=3)
    data = json.loads(json.dumps(profile.as_dict()))
    assert data["repeats"] == 3
    assert data["run_ns"] == pytest.approx(sum(step["ns"] for step in data["steps"]) + data["overhead_ns"])
    assert [step["runs"] for step in data["steps"]] == ["native", "native"]


def test_a_profile_is_a_trace():
    profile = session().profile({"x": X}, repeats=3)
    trace = json.loads(json.dumps(profile.chrome_trace("batch 2", 7)))
    whole, *steps = trace["traceEvents"]
    assert (whole["name"], whole["ph"], whole["ts"]) == ("batch 2", "X", 0)
    assert whole["dur"] == pytest.approx(profile.run_ns / 1000)
    assert [event["name"] for event in steps] == [step.label for step in profile.steps]
    assert {event["tid"] for event in trace["traceEvents"]} == {7}
    ends = np.cumsum([event["dur"] for event in steps])
    assert [event["ts"] for event in steps[1:]] == pytest.approx(ends[:-1].tolist())
    assert steps[0]["args"]["kernel"] == profile.steps[0].kernel


def test_the_bench_writes_a_trace(tmp_path):
    (tmp_path / "m.hnet").write_bytes(nets.hashed_mlp([12, 9, 5], "dyadic", 2).SerializeToString())
    arguments = [
        "bench",
        str(tmp_path / "m.hnet"),
        "--seconds",
        "0.01",
        "--trace",
        str(tmp_path / "trace.json"),
        "--json",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events} == {1, 2}
    assert len(events) == 6
