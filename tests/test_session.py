"""The session: onnxruntime's face, the same bits for any thread count, memory that is bounded and known beforehand."""

from __future__ import annotations

import gc
import io
import json
import os
import pickle
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import hashinfer
from hashinfer.errors import InputError, MemoryLimitError
from hashinfer.model.write import expand_node, save
from hashinfer.schemes import Dyadic, Xxh32
from hashinfer.session.plans import PLANS_KEPT
from tests import nets
from tests.nets import node

F32 = np.float32
SCHEMES = ("xxh32", "dyadic")
WIDE = 4096
MIB = 1 << 20


@cache
def net(name: str, sizes: tuple[int, ...] = (9, 8, 7), compression: float = 2) -> bytes:
    return nets.hashed_mlp(sizes, name, compression).SerializeToString()


def batch(rows: int, inputs: int = 9, seed: int = 0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, inputs)).astype(F32)
    x[:, ::3] = 0
    return x


def new_workers(action: Callable[[], object]) -> set[threading.Thread]:
    """The worker threads that an action starts."""
    before = set(threading.enumerate())
    action()
    return {t for t in set(threading.enumerate()) - before if t.name.startswith("hashinfer-")}


# ------------------------------------------------------------------------------------------------- onnxruntime's face

SCRIPTS = {
    "short": """
import {module} as ort
session = ort.InferenceSession(path)
found = session.run(None, {{"x": x}})
""",
    "options": """
import {module} as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 2
options.inter_op_num_threads = 1
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
options.enable_mem_pattern = False
options.enable_cpu_mem_arena = True
options.log_severity_level = 3
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
session = ort.InferenceSession(path, sess_options=options, providers=["CPUExecutionProvider"])
names = [o.name for o in session.get_outputs()]
first = session.get_inputs()[0].name
found = [session.run(names, {{first: x}}), session.run(names[:1], {{"x": x}}), session.get_providers()]
""",
    "questions": """
import {module} as ort
with open(path, "rb") as file:
    session = ort.InferenceSession(file.read(), None, [("CPUExecutionProvider", {{}})])
meta = session.get_modelmeta()
found = [
    [(v.name, v.type, v.shape) for v in session.get_inputs()],
    [(v.name, v.type, v.shape) for v in session.get_outputs()],
    len(session.get_overridable_initializers()),
    (meta.producer_name, meta.graph_name, meta.domain, meta.description, meta.graph_description, meta.version),
    meta.custom_metadata_map,
    session.get_session_options().intra_op_num_threads,
    list(session.get_provider_options()),
    "CPUExecutionProvider" in ort.get_available_providers(),
    ort.get_device().split("-")[0],
]
""",
    "run options": """
import {module} as ort
options = ort.RunOptions()
options.log_severity_level = 3
session = ort.InferenceSession(path, providers=ort.get_available_providers())
found = session.run(output_names=["y"], input_feed={{"x": x}}, run_options=options)
""",
    "batches": """
import {module} as ort
session = ort.InferenceSession(str(path))
found = [session.run(["y"], {{"x": x[k : k + 2]}})[0].argmax(1).tolist() for k in range(0, len(x), 2)]
""",
}


def outcome(script: str, module: str, path: str) -> Any:
    names: dict[str, Any] = {"path": path, "x": batch(6)}
    exec(script.format(module=module), names)  # noqa: S102
    return names["found"]


def assert_alike(ours: Any, theirs: Any) -> None:
    if isinstance(theirs, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert_alike(a, b)
    else:
        assert ours == theirs


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_for_onnxruntime_run_unchanged(script, name, tmp_path):
    model = onnx.load_from_string(net(name))
    model.producer_name, model.doc_string, model.domain, model.model_version = "somebody", "says this", "com.acme", 7
    model.graph.doc_string = "and that"
    model.metadata_props.add(key="colour", value="red")
    save(model, tmp_path / "m.hnet")
    path = str(tmp_path / "m.hnet")
    assert_alike(outcome(SCRIPTS[script], "hashinfer", path), outcome(SCRIPTS[script], "onnxruntime", path))


KINDS = {
    "float": (F32, 1),
    "double": (np.float64, 1),
    "float16": (np.float16, 1),
    "int32": (np.int32, 1),
    "int64": (np.int64, 1),
    "uint8": (np.uint8, 1),
    "bool": (np.bool_, True),
    "string": (np.object_, "a"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_types_are_named_as_onnxruntime_names_them(kind):
    dtype, value = KINDS[kind]
    number = onnx.TensorProto.STRING if kind == "string" else dtype
    model = nets.model([node("Identity", ["x"], ["y"])], {"x": (number, ["A", None, 2])}, {"y": (number, None)}, {})
    data = model.SerializeToString()
    ours = hashinfer.InferenceSession(data)
    theirs = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert [(v.name, v.type, v.shape) for v in ours.get_inputs()] == [
        (v.name, v.type, v.shape) for v in theirs.get_inputs()
    ]
    x = np.full((3, 1, 2), value, dtype)
    (a,), (b,) = ours.run(None, {"x": x}), theirs.run(None, {"x": x})
    assert a.dtype == b.dtype
    assert np.array_equal(a, b)


def test_results_are_the_callers_own():
    session = hashinfer.InferenceSession(net("dyadic"))
    first = session(batch(3))
    before = first.copy()
    session(batch(3, seed=1))
    assert np.array_equal(first, before)
    assert first.flags.writeable
    assert first.flags.owndata
    x = batch(3)
    identity = nets.model([node("Identity", ["x"], ["y"])], {"x": (F32, ["N", 9])}, {"y": (F32, ["N", 9])}, {})
    assert not np.shares_memory(hashinfer.InferenceSession(identity.SerializeToString())(x), x)


def test_outputs_by_name_and_twice():
    model = nets.model(
        [node("Neg", ["x"], ["a"]), node("Abs", ["x"], ["b"])],
        {"x": (F32, [2])},
        {"a": (F32, [2]), "b": (F32, [2])},
        {},
    )
    session, x = hashinfer.InferenceSession(model.SerializeToString()), np.array([1, -2], F32)
    assert [v.tolist() for v in session.run(["b", "a"], {"x": x})] == [[1, 2], [-1, 2]]
    assert [v.tolist() for v in session.run(["b", "b"], {"x": x})] == [[1, 2], [1, 2]]
    assert [v.tolist() for v in session.run([], {"x": x})] == [[-1, 2], [1, 2]]
    out = {"a": np.empty(2, F32)}
    assert session.run(["a"], {"x": x}, out=out)[0] is out["a"]
    assert out["a"].tolist() == [-1, 2]


def test_lazy_names():
    assert set(hashinfer.__all__) <= set(dir(hashinfer))
    for name in hashinfer.__all__:
        assert getattr(hashinfer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hashinfer.nothing


def test_importing_is_light():
    heavy = "numba", "onnx", "onnxruntime", "torch", "rich", "click"
    code = f"import sys, hashinfer; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --------------------------------------------------------------------------------------------------------- same bits


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("name", SCHEMES)
def test_same_bits_for_any_thread_count_and_every_run(name, rows):
    data, x = net(name, (784, 1000, 1000, 10), 16), batch(rows, 784)
    with hashinfer.InferenceSession(data, threads=1) as alone:
        expected = alone(x)
    for threads in (1, 2, 3, 4):
        with hashinfer.InferenceSession(data, threads=threads) as session:
            for _ in range(5):
                assert np.array_equal(session(x), expected)


def test_large_runs_are_shared_and_small_ones_are_not():
    x = batch(40, 784)
    with hashinfer.InferenceSession(net("xxh32"), threads=3) as small:
        assert not new_workers(lambda: small(batch(1)))
    with hashinfer.InferenceSession(net("dyadic", (8192, 8192, 8192), 512), threads=3) as steps_of_one_tile:
        assert not new_workers(lambda: steps_of_one_tile(batch(1, 8192)))
    with hashinfer.InferenceSession(net("xxh32", (784, 1000, 1000, 10), 16), threads=3) as large:
        started = new_workers(lambda: large(x))
        assert len(started) == 2
        assert not new_workers(lambda: large(x))
    for thread in started:
        thread.join(2)
        assert not thread.is_alive()


def test_workers_end_with_their_session():
    session = hashinfer.InferenceSession(net("xxh32", (784, 1000, 1000, 10), 16), threads=4)
    started = new_workers(partial(session, batch(40, 784)))
    assert len(started) == 3
    del session
    gc.collect()
    for thread in started:
        thread.join(2)
        assert not thread.is_alive()


@pytest.mark.parametrize("name", SCHEMES)
def test_many_threads_on_one_session(name):
    session = hashinfer.InferenceSession(net(name, (784, 300, 10), 8), threads=2)
    inputs = [batch(rows, 784, rows) for rows in (1, 2, 3, 5, 8, 13, 21, 34, 1, 2)]
    expected = [session(x) for x in inputs]

    def work(k: int) -> bool:
        order = np.random.default_rng(k).permutation(len(inputs))
        return all(np.array_equal(session(inputs[i]), expected[i]) for _ in range(5) for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_many_threads_run_a_dynamic_model():
    """Shapes that depend on data, and a subgraph, from many threads."""
    nodes = [
        expand_node(Xxh32(20, 9, 8, 3, 2), "w", "W"),
        node("MatMul", ["x", "W"], ["m"]),
        node("NonZero", ["m"], ["z"]),
        node("Relu", ["m"], ["r"]),
        node("NonZero", ["r"], ["y"]),
    ]
    outputs = {"y": (np.int64, [2, "M"]), "z": (np.int64, [2, "L"])}
    model = nets.model(nodes, {"x": (F32, ["N", 9])}, outputs, {"w": nets.weights(20)})
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=2)
    inputs = [batch(3, 9, k) for k in range(6)]
    expected = [session.run(None, {"x": x}) for x in inputs]
    assert not session.report()["fully_static"]

    def work(k: int) -> bool:
        found = session.run(None, {"x": inputs[k % 6]})
        return all(np.array_equal(a, b) for a, b in zip(found, expected[k % 6], strict=True))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(200)))


def test_two_sessions_share_nothing():
    first, second = (hashinfer.InferenceSession(net("dyadic", (784, 1000, 10), c), threads=2) for c in (8, 16))
    x = batch(20, 784)
    expected = first(x), second(x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda k: (first, second)[k % 2](x), range(40)))
    assert all(np.array_equal(y, expected[k % 2]) for k, y in enumerate(found))


@pytest.mark.parametrize("name", SCHEMES)
def test_changing_batch_sizes(name):
    session = hashinfer.InferenceSession(net(name))
    whole = batch(40)
    once = {rows: session(whole[:rows]) for rows in range(41)}
    for rows in np.random.default_rng(0).integers(0, 41, 100):
        assert np.array_equal(session(whole[:rows]), once[rows])
    np.testing.assert_allclose(once[40][:20], once[20], atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("rows", [1, 200])
def test_a_warm_run_with_out_allocates_no_array(name, rows):
    session = hashinfer.InferenceSession(net(name, (784, 1000, 1000), 16), threads=2)
    x, out = batch(rows, 784), np.empty((rows, 1000), F32)
    for _ in range(3):
        session.run(None, {"x": x}, out=[out])
    assert session.report({"x": x.shape})["fully_static"]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        session.run(None, {"x": x}, out=[out])
        peak = tracemalloc.get_traced_memory()[1] - before
        arrays = tracemalloc.take_snapshot().filter_traces([tracemalloc.DomainFilter(True, np.lib.tracemalloc_domain)])
    finally:
        tracemalloc.stop()
    assert peak < 3000, f"{peak} bytes; one row of activations is 4000"
    assert not arrays.traces


def test_out_is_what_is_returned():
    session, x = hashinfer.InferenceSession(net("dyadic")), batch(3)
    expected = session(x)
    out = np.full((3, 7), 77, F32)
    assert session.run(None, {"x": x}, out=[out])[0] is out
    assert np.array_equal(out, expected)
    assert session.run(["y"], {"x": x}, out={"y": out})[0] is out


@pytest.mark.parametrize("name", SCHEMES)
def test_max_memory(name):
    data, x = net(name, (784, 1000, 10), 16), batch(64, 784)
    total = hashinfer.InferenceSession(data, threads=1).report({"x": x.shape})["memory"]["total"]
    assert hashinfer.InferenceSession(data, threads=1, max_memory=total)(x).shape == (64, 10)
    tight = hashinfer.InferenceSession(data, threads=1, max_memory=total - 1)
    tracemalloc.start()
    try:
        with pytest.raises(MemoryLimitError, match=rf"\[64, 784\].*takes {total} bytes.*at most {total - 1}"):
            tight(x)
        assert tracemalloc.get_traced_memory()[1] < 64 * 1024
    finally:
        tracemalloc.stop()
    assert tight(x[:1]).shape == (1, 10)
    with pytest.raises(MemoryLimitError, match=r"weights take .* at most 1000"):
        hashinfer.InferenceSession(data, max_memory=1000)


def test_a_huge_batch_is_refused_by_the_plan():
    session = hashinfer.InferenceSession(net("dyadic"), max_memory=MIB)
    with pytest.raises(MemoryLimitError, match="at most 1048576"):
        session.plan({"x": (10**12, 9)})


@pytest.mark.parametrize("rows", [1, 8, 64])
@pytest.mark.parametrize("name", SCHEMES)
def test_a_wide_net_never_holds_a_matrix(name, rows):
    data, x = net(name, (WIDE, WIDE, 10), 64), batch(rows, WIDE)
    hashinfer.InferenceSession(data, threads=2)(x)  # compiles
    tracemalloc.start()
    try:
        session = hashinfer.InferenceSession(data, threads=2)
        session(x)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    w_size = 4 * WIDE * WIDE
    assert peak < w_size // 8, f"{peak / MIB:.1f} MiB"
    report = session.report({"x": x.shape})
    assert report["memory"]["total"] < w_size // 8
    assert max(b["bytes"] for b in report["buffers"]) <= 4 * rows * WIDE
    for step in report["steps"]:
        hashed = step["hashed"]
        allowed = 256 * 1024 if name == "xxh32" else 4 * 2 * hashed["width"] * 16
        assert step["scratch_bytes"] <= allowed
    allocated = report["memory"]["total"] + len(data)
    assert peak < 2 * allocated + 2 * MIB, "the report leaves something out"


def test_the_report_is_data():
    nodes = [
        expand_node(Dyadic(32, 9, 8, 3, 16), "w", "W"),
        node("MatMul", ["x", "W"], ["m"]),
        node("Softmax", ["m"], ["p"]),
        node("Det", ["c"], ["d"]),
        node("Add", ["p", "d"], ["y"]),
    ]
    inputs = {"x": (F32, ["N", 9]), "c": (F32, [2, 2])}
    model = nets.model(nodes, inputs, {"y": (F32, ["N", 8])}, {"w": nets.weights(32)})
    report = hashinfer.InferenceSession(model.SerializeToString(), threads=2).report({"x": (3, 9)})
    again = json.loads(json.dumps(report, allow_nan=False))
    assert again == report
    first = report["steps"][0]
    assert first["op"] == "ExpandDyadic+MatMul"
    assert first["kernel"]
    assert first["reason"]
    assert report["planned_for"][0] == {"dtype": "float32", "shape": [3, 9]}
    assert report["memory"]["threads"] == 2
    assert report["model"]["bodies"] == ["ExpandDyadic"]


# ------------------------------------------------------------------------------------------------------------ lifetime


@pytest.mark.parametrize("source", ["path", "bytes", "file object"])
def test_pickling(source, tmp_path):
    (tmp_path / "m.hnet").write_bytes(net("dyadic"))
    options = hashinfer.SessionOptions()
    options.intra_op_num_threads = 3
    given: Any = {"path": tmp_path / "m.hnet", "bytes": net("dyadic"), "file object": io.BytesIO(net("dyadic"))}[source]
    session = hashinfer.InferenceSession(given, options, max_memory=MIB)
    expected = session(batch(3))
    data = pickle.dumps(session)
    (tmp_path / "m.hnet").unlink()
    again = pickle.loads(data)
    assert np.array_equal(again(batch(3)), expected)
    assert again.threads == 3
    assert again.get_session_options().intra_op_num_threads == 3
    with pytest.raises(MemoryLimitError):
        again(batch(10**5))


def test_close():
    session = hashinfer.InferenceSession(net("xxh32"))
    session(batch(1))
    session.close()
    session.close()
    with pytest.raises(InputError, match="closed"):
        session(batch(1))
    with hashinfer.InferenceSession(net("xxh32")) as inside:
        inside(batch(1))
    with pytest.raises(InputError, match="closed"):
        inside(batch(1))


def test_closing_while_others_run():
    """A running call ends well; later ones are told."""
    session = hashinfer.InferenceSession(net("xxh32", (784, 1000, 1000, 10), 16), threads=2)
    x = batch(40, 784)
    expected = session(x)

    def work(_: int) -> bool:
        try:
            return np.array_equal(session(x), expected)
        except InputError as error:
            return "closed" in str(error)

    with ThreadPoolExecutor(4) as pool:
        running = pool.map(work, range(40))
        session.close()
        assert all(running)


def test_thread_counts(monkeypatch):
    options = hashinfer.SessionOptions()
    options.intra_op_num_threads = 2
    monkeypatch.delenv("HASHINFER_NUM_THREADS", raising=False)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert 1 <= hashinfer.InferenceSession(net("dyadic")).threads <= allowed
    monkeypatch.setenv("HASHINFER_NUM_THREADS", "5")
    assert hashinfer.InferenceSession(net("dyadic")).threads == 5
    assert hashinfer.InferenceSession(net("dyadic"), options).threads == 2
    assert hashinfer.InferenceSession(net("dyadic"), options, threads=3).threads == 3
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("HASHINFER_NUM_THREADS", wrong)
        with pytest.raises(InputError, match=f"HASHINFER_NUM_THREADS is '{wrong}'; expected"):
            hashinfer.InferenceSession(net("dyadic"))


FORK = """
import os, sys
import numpy as np
import hashinfer
session = hashinfer.InferenceSession(sys.argv[1], threads=2)
x = np.ones((40, 784), np.float32)
expected = session(x)
for _ in range(3):
    child = os.fork()
    if child == 0:
        same = all(np.array_equal(session(x), expected) for _ in range(5))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(session(x), expected)
print("same")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_fork(tmp_path):
    (tmp_path / "m.hnet").write_bytes(net("xxh32", (784, 1000, 10), 16))
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK, str(tmp_path / "m.hnet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.returncode) == ("same", 0), done.stderr


CACHES = {"off": "", "a file in the way": "{folder}/m.hnet", "writable by others": "{folder}/open"}


@pytest.mark.parametrize("case", CACHES)
def test_a_cache_that_cannot_be_used_only_costs_time(case, tmp_path):
    (tmp_path / "m.hnet").write_bytes(net("xxh32"))
    (tmp_path / "open").mkdir()
    code = (
        "import os, sys, numpy as np, hashinfer; from hashinfer.kernels import cache; os.umask(0)\n"
        "folder = cache.cache_folder()\n"
        "if folder: os.chmod(folder, 0o777)\n"
        "print(hashinfer.InferenceSession(sys.argv[1])(np.ones((1, 9), np.float32)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.hnet")],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"HASHINFER_CACHE_DIR": CACHES[case].format(folder=tmp_path)},
    )
    assert done.stdout.strip() == "(1, 7)"
    assert not list((tmp_path / "open").rglob("*.*"))


def test_the_plans_last_used_are_kept():
    session = hashinfer.InferenceSession(net("xxh32"), threads=1)
    session(batch(1))
    (first,) = session._plans._plans.values()
    for rows in range(2, 2 + 3 * PLANS_KEPT):
        session(batch(rows))
        session(batch(1))
    assert first in session._plans._plans.values()
    assert len(session._plans._plans) == PLANS_KEPT


def test_idle_buffers_are_bounded():
    session = hashinfer.InferenceSession(net("dyadic"), threads=1)
    session._plans.idle_bytes = 3 * session.plan({"x": batch(64).shape}).buffer_bytes
    for rows in range(1, 65):
        session(batch(rows))
    kept = sum(bound.plan.buffer_bytes for bound in session._plans._idle)
    assert 0 < kept <= session._plans.idle_bytes


def test_one_caller_needs_one_set_of_buffers_for_each_shape():
    session = hashinfer.InferenceSession(net("dyadic"), threads=1)
    for rows in (1, 64):
        for _ in range(5):
            session(batch(rows))
    assert len(session._plans._idle) + len(session._plans.last) == 2


def test_repeated_calls_take_any_arrays_of_the_same_types_and_share_none():
    nodes = [node("Add", ["a", "b"], ["sum"]), node("Mul", ["a", "b"], ["product"])]
    rows = (F32, ["N", 3])
    model = nets.model(nodes, {"a": rows, "b": rows}, {"sum": rows, "product": rows}, {})
    session = hashinfer.InferenceSession(model.SerializeToString(), threads=1)
    whole, kept = np.arange(24, dtype=F32).reshape(8, 3), []
    frozen = np.full((2, 3), 5, F32)
    frozen.flags.writeable = False
    for start in (0, 2, 4, 6, 1):
        view = whole[start : start + 2]
        kept.append((view, *session.run(None, {"a": view, "b": frozen})))
        kept.append((view, *session.run(None, {"b": frozen, "a": view.copy()})))
    for view, total, product in kept:
        np.testing.assert_array_equal(total, view + 5)
        np.testing.assert_array_equal(product, view * 5)
    assert len({id(array) for _, *made in kept for array in made}) == 2 * len(kept)


def test_out_takes_no_output_twice():
    session = hashinfer.InferenceSession(net("xxh32"), threads=1)
    y = session(batch(1))
    with pytest.raises(InputError, match="twice"):
        session.run(["y", "y"], {"x": batch(1)}, out=[y, y.copy()])


def test_a_shape_given_as_none_is_the_default() -> None:
    with hashinfer.InferenceSession(net("dyadic")) as session:
        name = session.get_inputs()[0].name
        assert session.report({name: None})["memory"] == session.report()["memory"]
