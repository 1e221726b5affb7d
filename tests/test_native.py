"""Models compiled ahead of time for this machine: the session's face, parity with the engine, what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest

import hashinfer
from bench.native.targets import sections
from hashinfer.errors import InputError, MemoryLimitError, ModelError, OpError, TimeLimitError, UnsupportedError
from hashinfer.model.write import expand_node
from hashinfer.native.emit.build import build
from hashinfer.native.emit.header import c_name
from hashinfer.native.emit.targets import PRESETS, resolve
from tests import nets

MODELS = Path(__file__).parent.parent / "models"
SHIPPED = sorted(path.stem for path in MODELS.glob("*.hnet"))
LINKER = next((cc for cc in ("cc", "gcc", "clang") if shutil.which(cc)), None)
pytestmark = pytest.mark.skipif(LINKER is None, reason="no C compiler is here to link a shared library")

HEAVY = {"numba", "llvmlite", "onnx", "torch", "rich", "click", "onnxruntime"}


def library(folder: Path, model: onnx.ModelProto | Path, name: str = "net", target: str = "host", **more) -> Path:
    """A shared library of a model, in `folder`."""
    path = model
    if isinstance(model, onnx.ModelProto):
        path = folder / f"{name}.hnet"
        path.write_bytes(model.SerializeToString())
    out = folder / f"{name}-{target}.so"
    out.write_bytes(build(path, resolve(target), "so", **more).data)
    return out


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """name -> the shared library of a shipped model, each built once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = library(tmp_path_factory.mktemp(name), MODELS / f"{name}.hnet", name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return np.load(MODELS / "mnist-test-1k.npy")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_answer_as_the_engine_does(shipped, digits, name):
    compiled = hashinfer.InferenceSession(shipped(name))
    engine = hashinfer.InferenceSession(MODELS / f"{name}.hnet", threads=1)
    found = compiled(digits)
    one_by_one = np.concatenate([engine(digits[k : k + 1]) for k in range(200)])
    np.testing.assert_allclose(found[:200], one_by_one, rtol=1e-4, atol=1e-4)
    expected = engine(digits)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    assert np.array_equal(found.argmax(1), expected.argmax(1))
    assert [vars_of(v) for v in compiled.get_inputs()] == [vars_of(v) for v in engine.get_inputs()]
    assert [vars_of(v) for v in compiled.get_outputs()] == [vars_of(v) for v in engine.get_outputs()]
    assert compiled.get_modelmeta() == engine.get_modelmeta()


def vars_of(value):
    return value.name, value.type, value.shape


RUN = """
import sys
import numpy as np
import hashinfer
session = hashinfer.InferenceSession(sys.argv[1])
logits = session(np.load(sys.argv[2])[:1])
assert logits.shape == (1, 10)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_a_library_loads_with_numpy_alone(shipped):
    command = [sys.executable, "-c", RUN, str(shipped("mnist-dyadic-64x")), str(MODELS / "mnist-test-1k.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "numpy" in done.stdout.split()
    assert not HEAVY & set(done.stdout.split())


def test_the_face_is_the_engines(shipped, digits):
    path = shipped("mnist-dyadic-64x")
    with hashinfer.InferenceSession(str(path), providers=["CPUExecutionProvider"], threads=1) as session:
        assert isinstance(session, hashinfer.InferenceSession)
        assert not isinstance(3, hashinfer.InferenceSession)
        expected = session(digits[:3])
        (again,) = session.run(["logits"], {"image": digits[:3]})
        assert np.array_equal(again, expected)
        out = np.empty((3, 10), np.float32)
        (same,) = session.run(None, {"image": digits[:3]}, out=[out])
        assert same is out
        assert np.array_equal(out, expected)
        assert np.array_equal(session(np.asfortranarray(digits[:3])), expected)
        assert session(digits[:0]).shape == (0, 10)
        copy = pickle.loads(pickle.dumps(session))
        assert np.array_equal(copy(digits[:3]), expected)
        assert session.get_providers() == ["CPUExecutionProvider"]
        assert session.file_bytes == path.stat().st_size
        assert session.threads == 1
    with pytest.raises(InputError, match="closed"):
        session(digits[:1])


def test_wrong_calls_are_refused_as_the_engine_refuses_them(shipped, digits):
    compiled = hashinfer.InferenceSession(shipped("mnist-dyadic-64x"))
    engine = hashinfer.InferenceSession(MODELS / "mnist-dyadic-64x.hnet", threads=1)
    one = digits[:1]
    calls = [
        lambda s: s(one.astype(np.float32)),
        lambda s: s(one[0]),
        lambda s: s(one[:, :20]),
        lambda s: s.run(None, {"picture": one}),
        lambda s: s.run(None, {}),
        lambda s: s.run("logits", {"image": one}),
        lambda s: s.run(["scores"], {"image": one}),
        lambda s: s.run(None, {"image": one}, out=[np.empty((2, 10), np.float32)]),
        lambda s: s.run(None, {"image": one}, out=[]),
        lambda s: s.run(None, [one]),
    ]
    for call in calls:
        said = []
        for session in (compiled, engine):
            with pytest.raises(InputError) as caught:
                call(session)
            said.append(str(caught.value))
        assert said[0] == said[1]


def test_memory_limits(shipped):
    path = shipped("mnist-dyadic-64x")
    with pytest.raises(MemoryLimitError, match="at most 1000"):
        hashinfer.InferenceSession(path, max_memory=1000)
    session = hashinfer.InferenceSession(path, max_memory=2**20)
    with pytest.raises(MemoryLimitError, match="logits"):
        session(np.zeros((100_000, 28, 28), np.uint8))


@pytest.mark.parametrize(("name", "flash"), [("mnist-dyadic-64x", 64), ("mnist-dyadic-64x-int8", 24)])
@pytest.mark.parametrize("target", ["cortex-m3", "cortex-m4", "cortex-m7"])
def test_a_digit_classifier_fits_small_boards(name, flash, target):
    """KiB of code and constants, less than `flash`; under 20 KiB of scratch."""
    built = build(MODELS / f"{name}.hnet", resolve(target), "o")
    assert sum(sections(built.data)) < flash * 1024
    assert built.about["scratch"] < 20 * 1024


def test_time_limits(shipped, digits):
    path = shipped("mnist-dyadic-64x")
    with pytest.raises(InputError, match="time_limit is 0"):
        hashinfer.InferenceSession(path, time_limit=0)
    session = hashinfer.InferenceSession(path, time_limit=60)
    expected = hashinfer.InferenceSession(path)(digits[:9])
    assert np.array_equal(session(digits[:9]), expected)
    assert np.array_equal(pickle.loads(pickle.dumps(session))(digits[:9]), expected)
    assert session(digits[:0]).shape == (0, 10)
    with pytest.raises(TimeLimitError, match=r"time limit of 1e-09 s is over after \d of 9 rows"):
        session.run(None, {"image": digits[:9]}, time_limit=1e-9)


def test_many_threads_at_once(shipped, digits):
    session = hashinfer.InferenceSession(shipped("mnist-xxh32-64x"))
    expected = session(digits[:64])
    wrong = []

    def work(start: int) -> None:
        rows = range(start, 64, 8)
        wrong.extend(k for k in rows if not np.array_equal(session(digits[k : k + 1])[0], expected[k]))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_files_that_are_no_compiled_models(tmp_path):
    with pytest.raises(FileNotFoundError):
        hashinfer.InferenceSession(tmp_path / "none.so")
    text = tmp_path / "text.so"
    text.write_text("not a library")
    with pytest.raises(ModelError, match="cannot be loaded"):
        hashinfer.InferenceSession(text)
    (tmp_path / "other.c").write_text("int f(void) { return 0; }\n")
    subprocess.run([LINKER, "-shared", "-o", tmp_path / "other.so", tmp_path / "other.c"], check=True)
    with pytest.raises(ModelError, match="hashinfer_describe"):
        hashinfer.InferenceSession(tmp_path / "other.so")


def check(
    folder: Path, model: onnx.ModelProto, feeds: dict[str, np.ndarray], name: str = "net", tolerance=1e-4, **more
):
    """The compiled model and the engine agree on the feeds."""
    compiled = hashinfer.InferenceSession(library(folder, model, name, **more))
    engine = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    for found, expected in zip(compiled.run(None, feeds), engine.run(None, feeds), strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_convolutional_net(tmp_path):
    layer = nets.scheme("dyadic", 9, 8, 32)
    nodes = [
        expand_node(layer, "w", "W"),
        nets.node("Transpose", ["W"], ["T"], perm=[1, 0]),
        nets.node("Reshape", ["T", "shape"], ["K"]),
        nets.node("Conv", ["x", "K", "bias"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2]),
        nets.node("Relu", ["c"], ["r"]),
        nets.node("Flatten", ["r"], ["f"]),
        nets.node("Gemm", ["f", "V", "c2"], ["y"]),
    ]
    constants = {
        "w": nets.weights(layer.buckets),
        "shape": np.array([8, 1, 3, 3]),
        "bias": floats(8, seed=1),
        "V": floats(8 * 36, 5, seed=2),
        "c2": floats(5, seed=3),
    }
    model = nets.model(nodes, {"x": (np.float32, ["N", 1, 12, 12])}, {"y": (np.float32, ["N", 5])}, constants)
    check(tmp_path, model, {"x": floats(4, 1, 12, 12, seed=4)})


def test_an_embedding_and_its_bad_indices(tmp_path):
    table = nets.scheme("xxh32", 50, 8, 64, parameter=4)
    nodes = [expand_node(table, "w", "W"), nets.node("Gather", ["W", "ids"], ["y"], axis=0)]
    model = nets.model(
        nodes, {"ids": (np.int64, ["N", 3])}, {"y": (np.float32, ["N", 3, 8])}, {"w": nets.weights(table.buckets)}
    )
    ids = np.array([[0, 49, -50], [1, 2, 3]])
    check(tmp_path, model, {"ids": ids})
    session = hashinfer.InferenceSession(tmp_path / "net-host.so")
    for wrong in (50, -51, 2**40):
        with pytest.raises(OpError, match="outside its table"):
            session(np.array([[0, 0, 0], [0, wrong, 0]]))


def test_several_inputs_and_outputs_of_which_one_is_the_other(tmp_path):
    nodes = [
        nets.node("Add", ["a", "b"], ["s"]),
        nets.node("Mul", ["s", "k"], ["y"]),
        nets.node("Identity", ["y"], ["z"]),
        nets.node("Identity", ["a"], ["same"]),
    ]
    model = nets.model(
        nodes,
        {"a": (np.float32, ["N", 4]), "b": (np.float32, ["N", 4])},
        {"y": (np.float32, ["N", 4]), "z": (np.float32, ["N", 4]), "same": (np.float32, ["N", 4])},
        {"k": floats(1, 4)},
    )
    check(tmp_path, model, {"a": floats(5, 4, seed=1), "b": floats(5, 4, seed=2)})
    session = hashinfer.InferenceSession(tmp_path / "net-host.so")
    with pytest.raises(InputError, match="3 rows"):
        session.run(None, {"a": floats(2, 4), "b": floats(3, 4)})


def test_weights_of_other_dtypes(tmp_path):
    layer = nets.scheme("dyadic", 64, 32, 128)
    stored = np.random.default_rng(0).integers(-100, 100, layer.buckets).astype(np.int8)
    nodes = [
        nets.node("DequantizeLinear", ["q", "scale"], ["w"]),
        expand_node(layer, "w", "W"),
        nets.node("MatMul", ["x", "W"], ["y"]),
    ]
    model = nets.model(
        nodes, {"x": (np.float32, ["N", 64])}, {"y": (np.float32, ["N", 32])}, {"q": stored, "scale": np.float32(0.01)}
    )
    check(tmp_path, model, {"x": floats(3, 64)})


def mlp(name: str = "dyadic", first: object = "N") -> onnx.ModelProto:
    made = nets.hashed_mlp([40, 24, 5], name, 4)
    if first != "N":
        for value in (*made.graph.input, *made.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = first
    return made


def test_fixed_shapes(tmp_path):
    check(tmp_path, mlp(first=3), {"x": floats(3, 40)})
    session = hashinfer.InferenceSession(tmp_path / "net-host.so")
    assert session.get_inputs()[0].shape == [3, 40]
    with pytest.raises(InputError, match=r"expected \[3, 40\]"):
        session(floats(4, 40))
    path = library(tmp_path, mlp(), "given", shapes={"x": (7, 40)})
    assert hashinfer.InferenceSession(path)(floats(7, 40)).shape == (7, 5)


@pytest.mark.parametrize("name", ["dyadic", "xxh32"])
def test_rows_that_are_not_finite_stay_by_themselves(tmp_path, name):
    x = floats(4, 40)
    x[1, 3], x[2, 5] = np.nan, np.inf
    check(tmp_path, mlp(name), {"x": x})


def test_what_has_no_kernels_is_refused_by_name(tmp_path):
    nodes = [nets.node("Mish", ["x"], ["y"], name="scores")]
    model = nets.model(nodes, {"x": (np.float32, ["N", 4])}, {"y": (np.float32, ["N", 4])}, {})
    with pytest.raises(UnsupportedError, match="Mish node 'scores'"):
        library(tmp_path, model)
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([("MatMul", ["c", "x"], {})], ["N", 4]),
        ([("ReduceSum", ["x", "first"], {})], ["N", 4]),
        ([("Resize", ["x", "", "more"], {"mode": "linear"})], ["N", 4]),
        ([("Resize", ["x", "", "twice"], {"mode": "nearest"})], ["N", 4]),
        ([("Add", ["x", "column"], {})], ["N", 4]),
        ([("Reshape", ["x", "flat"], {}), ("Add", ["v0", "row"], {})], ["N", 4]),
    ],
)
def test_rows_that_meet_are_refused(tmp_path, nodes, shape):
    made, last = [], ""
    for k, (op, ins, attrs) in enumerate(nodes):
        last = f"v{k}" if k < len(nodes) - 1 else "y"
        made.append(nets.node(op, ins, [last], name=f"node{k}", **attrs))
    constants = {
        "c": np.ones((1, 1), np.float32),
        "column": np.ones((1, 1, 4), np.float32),
        "flat": np.array([1, -1]),
        "row": np.ones((3, 1), np.float32),
        "first": np.array([0]),
        "more": np.array([1.2, 1], np.float32),
        "twice": np.array([2, 1], np.float32),
    }
    used = {name for _, ins, _ in nodes for name in ins} & set(constants)
    model = nets.model(made, {"x": (np.float32, shape)}, {"y": (np.float32, None)}, {k: constants[k] for k in used})
    with pytest.raises((UnsupportedError, InputError), match="give fixed shapes"):
        library(tmp_path, model)


def test_an_output_without_a_name_takes_nothing_along(tmp_path):
    """What leaves out an operand does not grow because another step grows an output that nobody names."""
    nodes = [
        nets.node("TopK", ["x", "k"], ["", "i"], name="top"),
        nets.node("Gemm", ["v", "m", ""], ["c"]),
        nets.node("MatMul", ["x", "c"], ["y"]),
    ]
    inputs = {"x": (np.float32, ["N", 4]), "v": (np.float32, [4, 3])}
    outputs = {"y": (np.float32, ["N", 3]), "i": (np.int64, ["N", 2])}
    model = nets.model(nodes, inputs, outputs, {"k": np.array([2]), "m": floats(3, 3)})
    check(tmp_path, model, {"x": floats(5, 4), "v": floats(4, 3)})


def test_open_dimensions_beside_the_batch_are_refused(tmp_path):
    nodes = [nets.node("Relu", ["x"], ["y"])]
    model = nets.model(nodes, {"x": (np.float32, ["N", "M"])}, {"y": (np.float32, ["N", "M"])}, {})
    with pytest.raises(InputError, match="dimension 1"):
        library(tmp_path, model)
    check(tmp_path, model, {"x": floats(2, 3)}, shapes={"x": (2, 3)})


def run_cli(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hashinfer", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(tmp_path):
    source = tmp_path / "2nd net.hnet"
    source.write_bytes(mlp().SerializeToString())
    done = run_cli("build", source, "-o", tmp_path / "net.o", "--json")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["name"] == "_2nd_net"
    assert about["bytes"] == (tmp_path / "net.o").stat().st_size
    header = (tmp_path / "net.h").read_text()
    for prototype in (
        "size_t _2nd_net_scratch_size(int32_t batch);",
        "int _2nd_net_run(const void *const *inputs, void *const *outputs, int32_t batch, void *scratch);",
        "int _2nd_net_predict(const float *input, float *output, int32_t batch, void *scratch)",
    ):
        assert prototype in header
    names = run_cli("build", "--list-targets")
    assert names.returncode == 0
    assert [line.split()[0] for line in names.stdout.splitlines()] == [t.name for t in PRESETS]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("net.hnet", "-o", "net.bin"), "neither .o nor .so"),
        (("net.hnet", "-o", "net.o", "--target", "toaster"), "target 'toaster' is unknown"),
        (("net.hnet", "-o", "net.o", "--target", "pdp11-dec-none"), "target 'pdp11-dec-none'"),
        (("net.hnet", "-o", "net.so", "--target", "cortex-m4"), "no shared libraries"),
        (("net.hnet", "-o", "net.o", "--name", "a b"), "no C identifier"),
        (("net.hnet", "-o", "net.o", "--shape", "x=a"), "expected NAME=D0,D1"),
        (("net.hnet", "-o", "net.o", "--shape", "z=1,2"), "no input 'z'"),
        (("none.hnet", "-o", "net.o"), "none.hnet"),
        (("net.hnet", "-o", "net.hnet", "--format", "o"), "is the model"),
    ],
)
def test_bad_commands_say_so_in_one_line_and_write_nothing(tmp_path, arguments, said):
    (tmp_path / "net.hnet").write_bytes(mlp().SerializeToString())
    before = sorted(tmp_path.iterdir())
    done = run_cli("build", *(tmp_path / a if a.startswith(("net", "none")) else a for a in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("hashinfer: error:")
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_names_become_c_identifiers():
    assert c_name("mnist-dyadic-64x") == "mnist_dyadic_64x"
    assert c_name("2x") == "_2x"
    assert c_name("int") == "_int"
    assert c_name("été") == "_t_"


def test_subclasses_and_class_attributes_are_the_engines():
    class Mine(hashinfer.InferenceSession):
        """A user's own."""

    session = Mine(mlp().SerializeToString(), threads=1)
    assert isinstance(session, hashinfer.InferenceSession)
    assert session(floats(1, 40)).shape == (1, 5)
    assert callable(hashinfer.InferenceSession.run)


def test_the_example_in_c(tmp_path, digits):
    """As its own comment and the README have it, but for the folder."""
    example = MODELS.parent / "bench" / "native" / "classify.c"
    assert (
        run_cli("build", MODELS / "mnist-dyadic-64x.hnet", "--name", "digits", "-o", tmp_path / "digits.o").returncode
        == 0
    )
    command = [
        LINKER,
        f"-I{tmp_path}",
        "-Wall",
        "-Werror",
        example,
        tmp_path / "digits.o",
        "-lm",
        "-o",
        tmp_path / "classify",
    ]
    subprocess.run(command, check=True)
    rows = [7, 2, 1, 999]
    line = [tmp_path / "classify", MODELS / "mnist-test-1k.npy", *map(str, rows)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    engine = hashinfer.InferenceSession(MODELS / "mnist-dyadic-64x.hnet")
    assert done.stdout.split("\n")[:-1] == [f"row {r}: {engine(digits[r : r + 1]).argmax()}" for r in rows]
    for wrong in (["1000"], ["-1"], []):
        done = subprocess.run([*line[:2], *wrong], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr


USE_PROJECT = """
import sys
import numpy as np
import digits
session = digits.session()
logits = session(np.load(sys.argv[1])[:3])
np.save(sys.argv[2], logits)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder that --format wheel-dir makes of a shipped model."""
    folder = tmp_path_factory.mktemp("project") / "out"
    source = MODELS / "mnist-dyadic-64x.hnet"
    done = run_cli("build", source, "--name", "digits", "--format", "wheel-dir", "--version", "2.1", "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder


def use(folder, tmp_path, digits):
    """Logits, and the modules imported, of a process that has the package in a folder and nothing else of ours."""
    command = [sys.executable, "-c", USE_PROJECT, MODELS / "mnist-test-1k.npy", tmp_path / "y.npy"]
    env = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    expected = hashinfer.InferenceSession(MODELS / "mnist-dyadic-64x.hnet")(digits[:3])
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=0, atol=1e-3)
    assert not (HEAVY | {"hashinfer"}) & set(done.stdout.split())


def test_a_project_needs_numpy_alone(project, tmp_path, digits):
    use(project, tmp_path, digits)
    about = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert (about["name"], about["version"], about["dependencies"]) == ("digits", "2.1", ["numpy>=2.0"])
    assert (project / "digits" / "model.h").exists()


def test_a_wheel_of_a_project_installs(project, tmp_path, digits):
    pytest.importorskip("hatchling")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheels", project]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    assert wheel.name.startswith("digits-2.1-py3-none-linux_")
    install = [*pip, "install", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(install, check=True, capture_output=True)
    use(tmp_path / "site", tmp_path, digits)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-o", "{folder}"), "is there already"),
        (("-o", "{folder}/new", "--version", "1\nx"), "expected numbers with dots"),
        (("-o", "{folder}/new", "--name", "_x"), "begins or ends with _"),
    ],
)
def test_projects_that_are_refused(tmp_path, arguments, said):
    (tmp_path / "net.hnet").write_bytes(mlp().SerializeToString())
    before = sorted(tmp_path.iterdir())
    words = [word.format(folder=tmp_path) for word in arguments]
    done = run_cli("build", tmp_path / "net.hnet", "--format", "wheel-dir", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
