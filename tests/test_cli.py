"""The installed command, as a user meets it: a process of its own, its exit code, its two streams."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from hashinfer.cli.app import COMMANDS, app
from hashinfer.schemes import Dyadic
from tests import nets

COMMAND = (sys.executable, "-c", "from hashinfer.cli import main; main()")


def run(*arguments: object, stdin: bytes | None = None, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=300,
        env=os.environ | environment,
    )


def ok(*arguments: object, **more: object) -> str:
    done = run(*arguments, **more)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net with a fixed answer, inputs, and what onnx's evaluator says."""
    made = tmp_path_factory.mktemp("cli")
    model = nets.hashed_mlp([12, 20, 5], "dyadic", 4)
    (made / "net.hnet").write_bytes(model.SerializeToString())
    x = nets.weights(30 * 12, 9).reshape(30, 12)
    y = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.save(made / "x.npy", x)
    np.save(made / "y.npy", y)
    np.save(made / "labels.npy", np.where(np.arange(30) < 24, y.argmax(1), (y.argmax(1) + 1) % 5))
    np.savez(made / "x.npz", x=x)
    return made


def test_run_prints_what_a_person_wants(folder: Path) -> None:
    text = ok("run", folder / "net.hnet", folder / "x.npy", "--labels", folder / "labels.npy", "--top-k", 2)
    best = int(np.load(folder / "y.npy")[0].argmax())
    assert "float32[30, 5]" in text
    assert "accuracy 80.00 %" in text
    assert f"{best} (" in text
    assert "time" in text
    assert "memory" in text


def test_run_json_is_whole_and_right(folder: Path) -> None:
    y = np.load(folder / "y.npy")
    data = json.loads(ok("run", folder / "net.hnet", folder / "x.npy", "--labels", folder / "labels.npy", "--json"))
    assert data["outputs"] == [{"name": "y", "dtype": "float32", "shape": [30, 5]}]
    assert data["accuracy"] == 0.8
    assert data["correct"] == 24
    assert [row[0]["class"] for row in data["top"]] == [int(k) for k in y.argmax(1)[:10]]
    assert data["time_ms"]["run"] > 0
    assert data["memory_bytes"]["weights"] > 0


@pytest.mark.parametrize("given", ["x.npy", "x.npz", "x=x.npy", "x=x.npz"])
def test_run_takes_every_form_of_input(folder: Path, tmp_path: Path, given: str) -> None:
    name, sign, file = given.rpartition("=")
    ok("run", folder / "net.hnet", f"{name}{sign}{folder / file}", "-o", tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), np.load(folder / "y.npy"), rtol=1e-4, atol=1e-5)


def test_run_pipes(folder: Path) -> None:
    done = run("run", folder / "net.hnet", "-", "-o", "-", stdin=(folder / "x.npy").read_bytes())
    assert done.returncode == 0
    np.testing.assert_allclose(np.load(io.BytesIO(done.stdout)), np.load(folder / "y.npy"), rtol=1e-4, atol=1e-5)
    assert b"float32[30, 5]" in done.stderr


def test_run_writes_npz(folder: Path, tmp_path: Path) -> None:
    ok("run", folder / "net.hnet", folder / "x.npy", "-o", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(out["y"], np.load(folder / "y.npy"), rtol=1e-4, atol=1e-5)


def test_run_streams_chunks_to_the_same_answer(folder: Path, tmp_path: Path) -> None:
    x = nets.weights(2500 * 12, 4).reshape(2500, 12)
    np.save(tmp_path / "x.npy", x)
    ok("run", folder / "net.hnet", tmp_path / "x.npy", "-o", tmp_path / "out.npy")
    model = onnx.load(folder / "net.hnet")
    expected = ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), expected, rtol=1e-4, atol=1e-5)


def mixing(first: str) -> onnx.ModelProto:
    """x minus its mean over the rows: no row stands alone. `first` names the output's first dimension."""
    return nets.model(
        [nets.node("ReduceMean", ["x", "axes"], ["m"]), nets.node("Sub", ["x", "m"], ["y" if first == "N" else "d"])]
        + ([] if first == "N" else [nets.node("ReduceSum", ["d", "axes"], ["y"])]),
        {"x": (np.float32, ["N", 4])},
        {"y": (np.float32, ["N", 4])},
        {"axes": np.array([0], np.int64)},
    )


def test_run_keeps_rows_together_that_depend_on_each_other(tmp_path: Path) -> None:
    (tmp_path / "mean.onnx").write_bytes(mixing("N").SerializeToString())
    x = nets.weights(3000 * 4).reshape(3000, 4)
    np.save(tmp_path / "x.npy", x)
    ok("run", tmp_path / "mean.onnx", tmp_path / "x.npy", "-o", tmp_path / "y.npy")
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), x - x.mean(0), atol=1e-5)


def test_run_in_chunks_by_choice(folder: Path, tmp_path: Path) -> None:
    ok("run", folder / "net.hnet", folder / "x.npy", "-o", tmp_path / "out.npy", "--chunk", 7)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), np.load(folder / "y.npy"), rtol=1e-4, atol=1e-5)
    (tmp_path / "sum.onnx").write_bytes(mixing("one row").SerializeToString())
    np.save(tmp_path / "x.npy", nets.weights(40).reshape(10, 4))
    done = run("run", tmp_path / "sum.onnx", tmp_path / "x.npy", "-o", tmp_path / "y.npy", "--chunk", 4)
    assert done.returncode == 2
    assert b"cannot be run in chunks" in done.stderr
    assert not (tmp_path / "y.npy").exists()


def test_json_and_tables_take_odd_values_and_names(tmp_path: Path) -> None:
    made = nets.model(
        [nets.node("Log", ["x"], ["[/red]o"])], {"x": (np.float32, ["s", 2])}, {"[/red]o": (np.float32, ["s", 2])}, {}
    )
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    np.save(tmp_path / "x.npy", np.array([[-1, 0], [1, 2]], np.float32))
    data = json.loads(ok("run", tmp_path / "m.onnx", tmp_path / "x.npy", "--json"))
    assert data["top"][0][0]["score"] in ("nan", "-inf")
    assert "[/red]o" in ok("run", tmp_path / "m.onnx", tmp_path / "x.npy")
    assert "[/red]o" in ok("inspect", tmp_path / "m.onnx")


def test_a_damaged_cache_heals(folder: Path, tmp_path: Path) -> None:
    arguments = ("run", folder / "net.hnet", folder / "x.npy")
    assert run(*arguments, HASHINFER_CACHE_DIR=str(tmp_path)).returncode == 0
    for path in tmp_path.rglob("*.nb*"):
        path.write_bytes(path.read_bytes()[:40])
    assert run(*arguments, HASHINFER_CACHE_DIR=str(tmp_path)).returncode == 0
    third = run(*arguments, HASHINFER_CACHE_DIR=str(tmp_path))
    assert third.returncode == 0
    assert b"compiling" not in third.stderr
    assert b"thrown away" not in third.stderr


def test_run_takes_an_empty_batch(folder: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 12), np.float32))
    ok("run", folder / "net.hnet", tmp_path / "none.npy", "-o", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (0, 5)


def test_inspect_shows_layers_and_kernels(folder: Path) -> None:
    text = ok("inspect", folder / "net.hnet")
    assert "ExpandDyadic+MatMul+Add+Relu" in text
    assert "12 x 20" in text
    data = json.loads(ok("inspect", folder / "net.hnet", "--batch", 64, "--json"))
    assert data["planned_for"] == [{"dtype": "float32", "shape": [64, 12]}]
    assert [s["runs"] for s in data["steps"]] == ["native", "native"]


def test_inspect_marks_fallbacks_and_materialised_weights(tmp_path: Path) -> None:
    layer = Dyadic(64, 8, 8, 1, 8)
    made = nets.model(
        [
            nets.expand_node(layer, "w", "W"),
            nets.node("MatMul", ["W", "x"], ["m"]),
            nets.node("Det", ["m"], ["y"], "corner"),
        ],
        {"x": (np.float32, [8, 8])},
        {"y": (np.float32, [])},
        {"w": nets.weights(64)},
    )
    (tmp_path / "odd.hnet").write_bytes(made.SerializeToString())
    data = json.loads(ok("inspect", tmp_path / "odd.hnet", "--json"))
    assert data["fallbacks"] == ["corner"]
    assert any("materialised" in s.get("reason", "") for s in data["steps"])


def test_verify_matches_and_tells_a_lie(folder: Path, tmp_path: Path) -> None:
    text = ok("verify", folder / "net.hnet")
    assert text.count("match") == 2
    model = onnx.load(folder / "net.hnet")
    for node in model.functions[0].node:
        if node.op_type == "Sub":
            node.op_type = "Add"
    (tmp_path / "lie.hnet").write_bytes(model.SerializeToString())
    done = run("verify", tmp_path / "lie.hnet")
    assert done.returncode == 1
    assert b"MISMATCH" in done.stdout


def test_expand_writes_the_dense_twin(folder: Path, tmp_path: Path) -> None:
    ok("expand", folder / "net.hnet", "-o", tmp_path / "dense.onnx")
    twin = onnx.load(tmp_path / "dense.onnx")
    onnx.checker.check_model(twin, full_check=True)
    assert not twin.functions
    assert {o.domain for o in twin.opset_import} == {""}
    y = ReferenceEvaluator(twin).run(None, {"x": np.load(folder / "x.npy")})[0]
    np.testing.assert_array_equal(y, np.load(folder / "y.npy"))


BAD = {
    "no model": (["run", "{folder}/none.hnet", "{folder}/x.npy"], "none.hnet: No such file"),
    "model is text": (["run", "{folder}/text", "{folder}/x.npy"], "not an ONNX model"),
    "model is a folder": (["inspect", "{folder}"], "is a folder"),
    "no input file": (["run", "{folder}/net.hnet", "{folder}/none.npy"], "none.npy: No such file"),
    "input is text": (["run", "{folder}/net.hnet", "{folder}/text"], "no .npy or .npz file"),
    "input of objects": (["run", "{folder}/net.hnet", "{folder}/objects.npy"], "object arrays are not read"),
    "input missing": (["run", "{folder}/net.hnet"], "input 'x' is missing"),
    "input twice": (["run", "{folder}/net.hnet", "{folder}/x.npy", "{folder}/x.npy"], "one input too many"),
    "input name": (["run", "{folder}/net.hnet", "z={folder}/x.npy"], "no input 'z'"),
    "input dtype": (["run", "{folder}/net.hnet", "{folder}/doubles.npy"], "expected float32[N, 12]"),
    "input rank": (["run", "{folder}/net.hnet", "{folder}/flat.npy"], "expected [N, 12]"),
    "labels count": (["run", "{folder}/net.hnet", "{folder}/x.npy", "--labels", "{folder}/few.npy"], "3 labels for 30"),
    "labels kind": (["run", "{folder}/net.hnet", "{folder}/x.npy", "--labels", "{folder}/x.npy"], "whole numbers"),
    "output name": (["run", "{folder}/net.hnet", "{folder}/x.npy", "-o", "{folder}/out.txt"], ".npy or .npz"),
    "output folder": (["run", "{folder}/net.hnet", "{folder}/x.npy", "-o", "{folder}/no/out.npy"], "No such file"),
    "expand onto itself": (["expand", "{folder}/net.hnet", "-o", "{folder}/net.hnet"], "is the model itself"),
    "shape": (["inspect", "{folder}/net.hnet", "--shape", "x=a,b"], "NAME=D0,D1"),
    "threads": (["run", "{folder}/net.hnet", "{folder}/x.npy", "--threads", "0"], "--threads"),
    "command": (["walk"], "No such command"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_code_2(folder: Path, case: str) -> None:
    (folder / "text").write_text("just words\n" * 20)
    np.save(folder / "doubles.npy", np.zeros((3, 12)))
    np.save(folder / "flat.npy", np.zeros(12, np.float32))
    np.save(folder / "few.npy", np.zeros(3, np.int64))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    arguments, expected = BAD[case]
    done = run(*[a.format(folder=folder) for a in arguments])
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 2
    assert len(lines) == 1
    assert lines[0].startswith("hashinfer: error: ")
    assert expected in lines[0]
    assert not done.stdout


def test_a_failed_run_leaves_the_old_output(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npy"
    out.write_bytes(b"what the user had")
    np.save(tmp_path / "bad.npy", np.zeros((4, 11), np.float32))
    assert run("run", folder / "net.hnet", tmp_path / "bad.npy", "-o", out).returncode == 2
    assert out.read_bytes() == b"what the user had"
    assert {p.name for p in tmp_path.iterdir()} == {"out.npy", "bad.npy"}


def test_runs_without_home_or_cache(folder: Path, tmp_path: Path) -> None:
    text = ok("run", folder / "net.hnet", folder / "x.npy", HOME="/nonexistent", XDG_CACHE_HOME="/proc/none")
    assert "float32[30, 5]" in text


def test_second_run_compiles_nothing(folder: Path, tmp_path: Path) -> None:
    first = run("run", folder / "net.hnet", folder / "x.npy", HASHINFER_CACHE_DIR=str(tmp_path))
    second = run("run", folder / "net.hnet", folder / "x.npy", HASHINFER_CACHE_DIR=str(tmp_path))
    assert b"compiling" in first.stderr
    assert b"compiling" not in second.stderr
    assert first.returncode == second.returncode == 0


def test_help_needs_no_engine() -> None:
    code = (
        "import sys; from hashinfer.cli.app import app; app.main(['--help'], standalone_mode=False);"
        "print(sorted(sys.modules))"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert "run" in text
    assert not {"numba", "onnx", "torch", "rich"} & set(text.splitlines()[-1].replace("'", "").strip("[]").split(", "))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hashinfer in", ["inspect"]),
        ("hashinfer run --thr", ["--threads"]),
        ("hashinfer cache ", ["clear", "show", "warm"]),
    ],
)
def test_shells_complete_commands_and_options(words: str, expected: list[str]) -> None:
    env = os.environ | {
        "_HASHINFER_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    program = "import sys; from hashinfer.cli import main; sys.argv[0] = 'hashinfer'; main()"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert [line.removeprefix("plain,") for line in done.stdout.splitlines()] == expected


def test_every_command_and_option_explains_itself() -> None:
    pending: list[tuple[str, click.Command]] = [("hashinfer", app)]
    seen = 0
    while pending:
        name, command = pending.pop()
        assert command.help, name
        options = [p for p in command.params if isinstance(p, click.Option)]
        assert all(option.help for option in options), name
        seen += 1
        if isinstance(command, click.Group):
            context = click.Context(command)
            found = [(n, command.get_command(context, n)) for n in command.list_commands(context)]
            pending += [(f"{name} {n}", c) for n, c in found if c is not None]
    assert seen == 1 + len(COMMANDS) + len(("show", "warm", "clear"))
