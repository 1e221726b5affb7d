"""What is wrong gives a typed error that names the node and what was expected, in bounded time and memory; or works."""

from __future__ import annotations

import logging
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import hashinfer
from hashinfer.errors import HashinferError, InputError, MemoryLimitError, ModelError, OpError, UnsupportedError
from hashinfer.model.write import expand_node
from hashinfer.schemes import DOMAIN, Dyadic, Xxh32
from tests import nets
from tests.nets import node

HANGS = 30
"""Seconds after which a load has hung: no measure of speed."""
F32 = np.float32
DYADIC, XXH32 = Dyadic(32, 9, 8, 3, 16), Xxh32(20, 9, 8, 3, 2)
GOOD = nets.hashed_mlp([9, 8, 7], "dyadic", 2).SerializeToString()


def load(model: ModelProto | bytes) -> hashinfer.InferenceSession:
    return hashinfer.InferenceSession(model if isinstance(model, bytes) else model.SerializeToString())


def plain(*nodes: onnx.NodeProto, **constants: np.ndarray) -> ModelProto:
    return nets.model(nodes, {"x": (F32, ["N", 3])}, {"y": (F32, None)}, constants)


def edited(change: Callable[[ModelProto], Any], scheme: Any = DYADIC) -> ModelProto:
    model = nets.single(scheme)
    change(model)
    return model


def with_attribute(scheme: Any, name: str, value: Any) -> ModelProto:
    """The Expand node with another value of an attribute; without it where None."""

    def change(model: ModelProto) -> None:
        attributes = model.graph.node[0].attribute
        kept = [a for a in attributes if a.name != name]
        del attributes[:]
        attributes.extend(kept)
        if value is not None:
            attributes.append(helper.make_attribute(name, value))

    return edited(change, scheme)


def with_weights(scheme: Any, w: np.ndarray) -> ModelProto:
    return edited(lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, "w")), scheme)


def with_tensor(**fields: Any) -> ModelProto:
    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for key, value in fields.items():
            if isinstance(value, list):
                del getattr(tensor, key)[:]
                getattr(tensor, key).extend(value)
            else:
                setattr(tensor, key, value)

    return edited(change)


def external(location: str, **entries: str) -> ModelProto:
    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=value)

    return edited(change)


def with_opset(domain: str, version: int | None) -> ModelProto:
    def change(model: ModelProto) -> None:
        kept = [o for o in model.opset_import if o.domain != domain]
        del model.opset_import[:]
        model.opset_import.extend(kept)
        if version is not None:
            model.opset_import.append(helper.make_opsetid(domain, version))

    return edited(change)


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    return helper.make_function("f", name, ["a"], ["b"], list(nodes), opsets)


def call(name: str, source: str, target: str) -> onnx.NodeProto:
    return helper.make_node(name, [source], [target], domain="f")


def calling(*functions: onnx.FunctionProto) -> ModelProto:
    """A model that calls the first of some functions; put together by hand, for checkers would hang."""
    model = plain(node("Identity", ["x"], ["y"]))
    model.graph.node[0].CopyFrom(call(functions[0].name, "x", "y"))
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("f", 1))
    return model


def doubling(count: int) -> ModelProto:
    """Functions that each call the next twice."""
    made = [function(f"F{k}", call(f"F{k + 1}", "a", "t"), call(f"F{k + 1}", "t", "b")) for k in range(count)]
    return calling(*made, function(f"F{count}", helper.make_node("Neg", ["a"], ["b"])))


def nested_ifs(depth: int, both: bool = False) -> ModelProto:
    """Ifs inside Ifs, in one branch or in both."""
    inner = [helper.make_node("Identity", ["x"], ["t"])]
    out = [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    leaf = helper.make_graph(inner, "g", [], out)
    for _ in range(depth):
        branch = helper.make_graph(inner, "g", [], out)
        inner = [helper.make_node("If", ["c"], ["t"], then_branch=branch, else_branch=branch if both else leaf)]
    inner[0].output[0] = "y"
    return nets.model(inner, {"x": (F32, [3]), "c": (np.bool_, [])}, {"y": (F32, None)}, {})


def sparse() -> ModelProto:
    def change(model: ModelProto) -> None:
        values = numpy_helper.from_array(np.ones(1, F32), "s")
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, numpy_helper.from_array(np.zeros(1, np.int64), "i"), [4])
        )

    return edited(change)


def renamed_output(old: str, new: str) -> Callable[[ModelProto], None]:
    def change(model: ModelProto) -> None:
        for n in model.graph.node:
            n.output[:] = [new if o == old else o for o in n.output]

    return change


FILES: dict[str, tuple[Callable[[], ModelProto | bytes], type[Exception], str]] = {
    # What is no model.
    "empty": (lambda: b"", ModelError, "empty.*expected an ONNX model"),
    "random bytes": (lambda: np.random.default_rng(1).bytes(5000), ModelError, "not an ONNX model"),
    "text": (lambda: b"model: yes, honestly\n" * 20, ModelError, "not an ONNX model"),
    "zeros": (lambda: bytes(5000), ModelError, "not an ONNX model"),
    "no graph": (lambda: ModelProto(ir_version=9), ModelError, "no graph"),
    # Versions.
    "opset too new": (lambda: with_opset("", 999), UnsupportedError, "opset is 999; expected"),
    "opset too old": (lambda: with_opset("", 3), UnsupportedError, "opset is 3; expected"),
    "opset below the bodies": (lambda: with_opset("", 17), UnsupportedError, "17; expected at least 18"),
    "no opset": (lambda: with_opset("", None), ModelError, "default domain"),
    "hash domain 2": (lambda: with_opset(DOMAIN, 2), UnsupportedError, "version 2 of ai.hashinfer.*reads version 1"),
    "hash domain 0": (lambda: with_opset(DOMAIN, 0), UnsupportedError, "version 0 of ai.hashinfer"),
    "hash domain not imported": (lambda: with_opset(DOMAIN, None), ModelError, "'W'.*imports no version.*ai.hashinfer"),
    "opset imported twice": (
        lambda: edited(lambda m: m.opset_import.append(helper.make_opsetid("", 19))),
        ModelError,
        "imports domain '' twice, in versions",
    ),
    "old IR": (lambda: edited(lambda m: setattr(m, "ir_version", 1)), UnsupportedError, "IR version 1"),
    "a Split into fewer parts than outputs": (
        lambda: plain(node("Split", ["x"], ["y", "z"], num_outputs=1, axis=1)),
        ModelError,
        "num_outputs is 1, and the node names 2 outputs",
    ),
    # Functions and subgraphs without end.
    "recursive function": (lambda: calling(function("F", call("F", "a", "b"))), ModelError, "F calls itself"),
    "two functions in a ring": (
        lambda: calling(function("F", call("G", "a", "b")), function("G", call("F", "a", "b"))),
        ModelError,
        "calls itself",
    ),
    "30 doubling functions": (lambda: doubling(30), ModelError, "nested more than|nodes after its functions"),
    "22 doubling functions": (lambda: doubling(22), ModelError, "nodes after its functions are expanded"),
    "nested subgraphs": (lambda: nested_ifs(30), ModelError, "nested more than 24 deep"),
    "function defined twice": (
        lambda: calling(*[function("F", helper.make_node("Neg", ["a"], ["b"]))] * 2),
        ModelError,
        "F is defined twice",
    ),
    "function without its output": (
        lambda: calling(function("F", helper.make_node("Neg", ["a"], ["c"]))),
        ModelError,
        "output 'b' of the function f::F",
    ),
    # Hash parameters.
    "seed -1": (lambda: with_attribute(DYADIC, "seed", -1), ModelError, "'W'.*seed is -1; expected"),
    "seed 2^32": (lambda: with_attribute(XXH32, "seed", 2**32), ModelError, "'W'.*seed is 4294967296; expected"),
    "rows 0": (lambda: with_attribute(XXH32, "rows", 0), ModelError, "'W'.*rows is 0; expected"),
    "rows -1": (lambda: with_attribute(DYADIC, "rows", -1), ModelError, "'W'.*rows is -1; expected"),
    "rows 2^31": (lambda: with_attribute(XXH32, "rows", 2**31), ModelError, "'W'.*rows is 2147483648; expected"),
    "cols 0": (lambda: with_attribute(DYADIC, "cols", 0), ModelError, "'W'.*cols is 0; expected"),
    "cols 2^31": (lambda: with_attribute(DYADIC, "cols", 2**31), ModelError, "'W'.*cols is 2147483648; expected"),
    "block 0": (lambda: with_attribute(XXH32, "block", 0), ModelError, "'W'.*block is 0; expected"),
    "block over K": (lambda: with_attribute(XXH32, "block", 21), ModelError, "'W'.*block is 21; expected.*20"),
    "width 0": (lambda: with_attribute(DYADIC, "width", 0), ModelError, "'W'.*width is 0; expected"),
    "width 6": (lambda: with_attribute(DYADIC, "width", 6), ModelError, "'W'.*width is 6; expected a power of two"),
    "width over K": (lambda: with_attribute(DYADIC, "width", 64), ModelError, "'W'.*width is 64; expected"),
    "width does not divide K": (
        lambda: with_weights(DYADIC, nets.weights(24)),
        ModelError,
        "'W'.*16 does not divide.*24",
    ),
    **{
        f"no {name}": (lambda s=s, name=name: with_attribute(s, name, None), ModelError, f"'W'.*expected.*{name}")
        for s, name in ((DYADIC, "seed"), (XXH32, "rows"), (DYADIC, "cols"), (XXH32, "block"), (DYADIC, "width"))
    },
    "one attribute more": (lambda: with_attribute(DYADIC, "block", 1), ModelError, "'W'.*expected seed, rows"),
    "seed a float": (lambda: with_attribute(DYADIC, "seed", 1.0), ModelError, "'W'.*seed is 1.0; expected an integer"),
    "width a text": (lambda: with_attribute(DYADIC, "width", "16"), ModelError, "'W'.*width is '16'; expected"),
    "rows a list": (lambda: with_attribute(XXH32, "rows", [9]), ModelError, "'W'.*rows is .*; expected an integer"),
    "attribute twice": (
        lambda: edited(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("seed", 1))),
        ModelError,
        "'W'.*'seed' is given twice",
    ),
    # Weight vectors.
    "w of rank 2": (lambda: with_weights(DYADIC, nets.weights(32).reshape(2, 16)), ModelError, "'W'.*expected rank 1"),
    "w a scalar": (lambda: with_weights(XXH32, np.array(1, F32)), ModelError, "'W'.*expected rank 1"),
    "w empty": (lambda: with_weights(XXH32, np.empty(0, F32)), ModelError, "'W'.*buckets.*is 0; expected"),
    "no w": (lambda: edited(lambda m: m.graph.node[0].ClearField("input")), ModelError, "'W'.*expected one input"),
    "two inputs": (lambda: edited(lambda m: m.graph.node[0].input.append("w")), ModelError, "'W'.*expected one input"),
    "w a text": (
        lambda: edited(
            lambda m: m.graph.initializer[0].CopyFrom(helper.make_tensor("w", TensorProto.STRING, [1], [b"a"]))
        ),
        HashinferError,
        "'W'.*expected",
    ),
    # Tensors.
    "dims below 0": (lambda: with_tensor(dims=[-32]), ModelError, "'w'.*expected none below 0"),
    "dims too large": (lambda: with_tensor(dims=[2**40]), ModelError, "'w'.*bytes are stored"),
    "dims too small": (lambda: with_tensor(dims=[31]), ModelError, "'w'.*124 bytes; 128 bytes are stored"),
    "dims whose product wraps": (lambda: with_tensor(dims=[2**32, 2**32]), ModelError, "'w'.*bytes are stored"),
    "element type": (lambda: with_tensor(data_type=77), ModelError, "'w'.*element type 77"),
    "typed data missing": (lambda: with_tensor(raw_data=b"", dims=[2**33]), ModelError, "'w'"),
    "external, no folder": (lambda: external("w.bin"), UnsupportedError, "'w'.*'w.bin'.*no folder"),
    "sparse initializer": (sparse, UnsupportedError, "sparse"),
    # Graphs.
    "cycle": (
        lambda: plain(node("Add", ["x", "b"], ["a"]), node("Neg", ["a"], ["b"]), node("Neg", ["b"], ["y"])),
        ModelError,
        "'Add_a'.*'b' comes from the later Neg node: a cycle",
    ),
    "undefined input": (
        lambda: plain(node("Neg", ["nowhere"], ["y"])),
        ModelError,
        "'Neg_y'.*'nowhere' is produced by no",
    ),
    "undefined output": (lambda: plain(node("Neg", ["x"], ["z"])), ModelError, "output 'y'.*produced by no"),
    "one name twice": (
        lambda: plain(node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["y"])),
        ModelError,
        "'y' is defined twice",
    ),
    "output named like an input": (lambda: edited(renamed_output("y", "x")), ModelError, "'x' is defined twice"),
    "initializers of one name": (
        lambda: edited(lambda m: m.graph.initializer.append(m.graph.initializer[0])),
        ModelError,
        "'w' is defined twice",
    ),
    "unknown op": (lambda: plain(node("Frobnicate", ["x"], ["y"])), UnsupportedError, "'Frobnicate_y'.*no such op"),
    "unknown domain": (
        lambda: edited(
            lambda m: (
                setattr(m.graph.node[1], "domain", "acme"),
                m.opset_import.append(helper.make_opsetid("acme", 1)),
            )
        ),
        UnsupportedError,
        "'MatMul_y'.*'acme'",
    ),
    "unknown hash op": (
        lambda: edited(lambda m: setattr(m.graph.node[0], "op_type", "ExpandMd5")),
        UnsupportedError,
        "ExpandMd5 node 'W'.*ExpandXxh32 and ExpandDyadic",
    ),
    "unknown attribute": (lambda: plain(node("Neg", ["x"], ["y"], axis=1)), ModelError, "'Neg_y'.*'axis'"),
    "attribute of another kind": (
        lambda: plain(node("LeakyRelu", ["x"], ["y"], alpha=1)),
        ModelError,
        "'LeakyRelu_y'.*'alpha' is of kind INT; expected FLOAT",
    ),
    "attribute missing": (lambda: plain(node("Cast", ["x"], ["y"])), ModelError, "'Cast_y'.*'to'"),
    "too many inputs": (lambda: plain(node("Neg", ["x", "x"], ["y"])), ModelError, "'Neg_y'.*2 inputs; expected 1"),
}


@pytest.mark.parametrize("case", FILES)
def test_files_that_cannot_be_loaded(case):
    make, error, says = FILES[case]
    made = make()
    data = made if isinstance(made, bytes) else made.SerializeToString()
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(error, match=f"(?s){says}"):
            load(data)
        assert time.perf_counter() - start < HANGS
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


LARGE: dict[str, Callable[[], ModelProto]] = {
    "nested Ifs, 4096 branches": lambda: nested_ifs(12, both=True),
    "13 doubling functions": lambda: doubling(13),
    "20000 nodes": lambda: plain(*[node("Neg", ["x"], [f"t{k}"]) for k in range(20000)], node("Neg", ["x"], ["y"])),
    "5000 nodes in a chain": lambda: plain(
        *[node("Neg", ["x" if k == 0 else f"t{k}"], ["y" if k == 4999 else f"t{k + 1}"]) for k in range(5000)]
    ),
}


@pytest.mark.parametrize("case", LARGE)
def test_large_files_load_in_time(case):
    """Nothing here is wrong; the time is in proportion to the size."""
    data = LARGE[case]().SerializeToString()
    start = time.perf_counter()
    load(data)
    assert time.perf_counter() - start < HANGS


def huge(*nodes: onnx.NodeProto, x: tuple[Any, list[Any]] = (F32, ["N", 4]), **constants: np.ndarray) -> ModelProto:
    """W [2^31 - 1, 2^31 - 1] in a model of a few hundred bytes."""
    scheme = Xxh32(20, 2**31 - 1, 2**31 - 1, 3, 2)
    return nets.model(
        [expand_node(scheme, "w", "W"), *nodes], {"x": x}, {"y": (F32, None)}, {"w": nets.weights(20)} | constants
    )


BEYOND_MEMORY: dict[str, Callable[[], ModelProto]] = {
    "W itself": lambda: huge(node("Identity", ["W"], ["y"])),
    "elementwise": lambda: huge(node("Neg", ["W"], ["y"])),
    "left operand": lambda: huge(node("MatMul", ["W", "W"], ["y"])),
    "Gather of columns": lambda: huge(node("Gather", ["W", "zero"], ["y"], axis=1), zero=np.array([0])),
    "lookup of whole rows": lambda: huge(node("Gather", ["W", "ids"], ["y"]), ids=np.zeros(1000, np.int64)),
    "Transpose": lambda: huge(node("Transpose", ["W"], ["y"], perm=[1, 0])),
    "Shape": lambda: huge(node("Shape", ["W"], ["s"]), node("Cast", ["s"], ["t"], to=1), node("Neg", ["W"], ["y"])),
    "ConstantOfShape": lambda: huge(node("ConstantOfShape", ["s"], ["y"]), s=np.array([2**20, 2**20])),
    "Tile": lambda: huge(node("Tile", ["x", "s"], ["y"]), x=(F32, [1, 4]), s=np.array([2**25, 2**20])),
    "Expand": lambda: huge(node("Expand", ["x", "s"], ["y"]), x=(F32, [1, 1]), s=np.array([2**25, 2**20])),
}


@pytest.mark.parametrize("case", BEYOND_MEMORY)
def test_what_would_not_fit_in_memory(case):
    data = BEYOND_MEMORY[case]().SerializeToString()
    tracemalloc.start()
    start = time.perf_counter()
    try:
        with pytest.raises(HashinferError) as caught:
            load(data).run(None, {"x": np.ones((1, 1 if case == "Expand" else 4), F32)})
        assert isinstance(caught.value, MemoryLimitError), caught.value
        assert "bytes" in str(caught.value)
        assert "node" in str(caught.value)
        assert time.perf_counter() - start < HANGS
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("step", [1, 37])
def test_truncated_files(step):
    """Cut anywhere: an error of ours, or (between two fields of the model) something that still is one."""
    offsets = range(200) if step == 1 else range(200, len(GOOD), step)
    for offset in offsets:
        load_and_run(GOOD[:offset])


def load_and_run(data: bytes) -> bool:
    """Whether it ran; raises what is no error of ours."""
    try:
        session = hashinfer.InferenceSession(data, max_memory=1 << 28, threads=1)
        feeds = {}
        for value in session.get_inputs():
            shape = [d if isinstance(d, int) and d < 100 else 2 for d in value.shape]
            feeds[value.name] = np.ones(shape, F32)
        session.run(None, feeds)
    except (HashinferError, OSError):
        return False
    return True


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutated_files(seed, caplog):
    """A few bytes of a valid file changed: an error of ours, or a model."""
    caplog.set_level(logging.CRITICAL)
    rng = np.random.default_rng(seed)
    name = ("dyadic", "xxh32")[seed % 2]
    model = nets.hashed_mlp([9, 8, 7], name, 2)
    if seed < 2:
        del model.functions[:]
    good = model.SerializeToString()
    ran = 0
    for _ in range(100):
        data = bytearray(good)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] = rng.integers(256)
        ran += load_and_run(bytes(data))
    assert 0 < ran < 100


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.hnet"):
        hashinfer.InferenceSession(tmp_path / "nothing.hnet")
    with pytest.raises(ModelError, match="is a folder; expected a model file"):
        hashinfer.InferenceSession(tmp_path)
    for odd in (None, 3, ["m.hnet"]):
        with pytest.raises(ModelError, match="expected a path, bytes or a binary file object"):
            hashinfer.InferenceSession(odd)  # type: ignore[arg-type]
    (tmp_path / "text").write_text("x")
    with (tmp_path / "text").open() as file, pytest.raises(ModelError, match="gives str; expected"):
        hashinfer.InferenceSession(file)  # type: ignore[arg-type]


EXTERNAL = {
    "above": (lambda: external("../secret.bin"), "outside the model's folder"),
    "absolute": (lambda: external("/etc/passwd"), "outside the model's folder"),
    "no name": (lambda: external(""), "outside the model's folder"),
    "a link out": (lambda: external("link.bin"), "outside the model's folder"),
    "missing": (lambda: external("missing.bin"), "cannot be read"),
    "a folder": (lambda: external("folder"), "'w'"),
    "too short": (lambda: external("short.bin"), "128 bytes; 3 bytes are stored"),
    "beyond its end": (lambda: external("short.bin", offset="1", length="128"), "which has 3"),
    "negative offset": (lambda: external("short.bin", offset="-1", length="3"), "'w'"),
    "not a number": (lambda: external("short.bin", offset="one"), "cannot be read"),
}


@pytest.mark.parametrize("case", EXTERNAL)
def test_external_data(case, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "folder").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(128))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(b"abc")
    make, says = EXTERNAL[case]
    (folder / "m.hnet").write_bytes(make().SerializeToString())
    with pytest.raises(ModelError, match=says):
        hashinfer.InferenceSession(folder / "m.hnet")


def test_external_data_in_the_folder_works(tmp_path):
    (tmp_path / "w.bin").write_bytes(b"skip" + nets.weights(32).tobytes())
    (tmp_path / "m.hnet").write_bytes(external("w.bin", offset="4", length="128").SerializeToString())
    x = nets.weights(9).reshape(1, 9)
    assert np.array_equal(hashinfer.InferenceSession(tmp_path / "m.hnet")(x), load(nets.single(DYADIC))(x))


@pytest.mark.parametrize("dtype", ["int32", "float64"])
def test_weight_vectors_of_other_dtypes_cannot_be_multiplied_with_float32(dtype):
    """Expand takes any number; the product, as everywhere in ONNX, takes one dtype."""
    model = with_weights(DYADIC, np.ones(32, dtype))
    with pytest.raises(HashinferError, match=rf"'(MatMul_y|W)'.*{dtype}"):
        load(model).run(None, {"x": np.ones((1, 9), F32)})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_odd_weights_load_with_a_warning(value, caplog):
    w = nets.weights(32).copy()
    w[3] = value
    with caplog.at_level(logging.WARNING, "hashinfer"):
        session = load(with_weights(DYADIC, w))
    (record,) = caplog.records
    assert "'MatMul_y'" in record.getMessage()
    assert "NaN or Inf" in record.getMessage()
    assert not np.isfinite(session(np.ones((1, 9), F32))).all()


# ---------------------------------------------------------------------------------------------------------------- runs

TWO = nets.model(
    [expand_node(XXH32, "w", "W"), node("MatMul", ["x", "W"], ["m"]), node("Add", ["m", "b"], ["y"])],
    {"x": (F32, ["N", 9]), "b": (F32, [8])},
    {"y": (F32, ["N", 8])},
    {"w": nets.weights(20)},
)
TABLE = nets.model(
    [expand_node(XXH32, "w", "W"), node("Gather", ["W", "ids"], ["y"])],
    {"ids": (np.int64, ["N"])},
    {"y": (F32, ["N", 8])},
    {"w": nets.weights(20)},
)
X, B = nets.weights(27).reshape(3, 9), nets.weights(8)

REFUSED_FEEDS: dict[str, tuple[Any, type[Exception], str]] = {
    "wrong name": ({"z": X, "x": X, "b": B}, InputError, "no input 'z'; it has 'x', 'b'"),
    "missing": ({"x": X}, InputError, "input 'b' is missing; given are 'x'"),
    "none": ({}, InputError, "input 'x' is missing"),
    "not a dict": ([X, B], InputError, "list; expected a dict"),
    "float64": ({"x": X.astype(float), "b": B}, InputError, r"input 'x' is float64\[3, 9\]; expected float32\[N, 9\]"),
    "int": ({"x": X.astype(int), "b": B}, InputError, "input 'x' is int64.*; expected float32"),
    "python floats": ({"x": X.tolist(), "b": B}, InputError, "input 'x' is float64.*; expected float32"),
    "rank 1": ({"x": X[0], "b": B}, InputError, r"input 'x' has shape \[9\]; expected \[N, 9\]"),
    "rank 3": ({"x": X[None], "b": B}, InputError, r"input 'x' has shape \[1, 3, 9\]; expected \[N, 9\]"),
    "size": ({"x": X[:, :8], "b": B}, InputError, r"input 'x' has shape \[3, 8\]; expected \[N, 9\]"),
    "size of b": ({"x": X, "b": B[:7]}, InputError, r"input 'b' has shape \[7\]; expected \[8\]"),
    "objects": ({"x": X.astype(object), "b": B}, InputError, "input 'x' is object.*; expected float32"),
    "text": ({"x": np.full((3, 9), "a"), "b": B}, InputError, "input 'x' is .*; expected float32"),
    "ragged": ({"x": [[1.0], [1.0, 2.0]], "b": B}, InputError, "input 'x' cannot be made an array"),
    "None": ({"x": None, "b": B}, InputError, "input 'x' is object.*; expected float32"),
    "complex": ({"x": X.astype(complex), "b": B}, InputError, "input 'x' is complex"),
}


@pytest.mark.parametrize("case", REFUSED_FEEDS)
def test_inputs_that_do_not_fit(case):
    feed, error, says = REFUSED_FEEDS[case]
    with pytest.raises(error, match=says):
        load(TWO).run(None, feed)


def aligned_wrongly(x: np.ndarray) -> np.ndarray:
    """The same numbers at an odd address."""
    raw = np.zeros(x.nbytes + 1, np.uint8)
    out = raw[1:].view(x.dtype) if x.dtype.itemsize == 1 else np.ndarray(x.shape, x.dtype, raw.data, 1)
    out[...] = x
    return out


def read_only(x: np.ndarray) -> np.ndarray:
    out = x.copy()
    out.flags.writeable = False
    return out


WORKING_FEEDS: dict[str, Callable[[np.ndarray], Any]] = {
    "as it is": lambda x: x,
    "Fortran order": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2],
    "reversed": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "big-endian": lambda x: x.astype(">f4"),
    "read-only": read_only,
    "at an odd address": aligned_wrongly,
    "list of arrays": list,
    "matrix": lambda x: x.view(type("Sub", (np.ndarray,), {})),
    "memoryview": memoryview,
}


@pytest.mark.parametrize("case", WORKING_FEEDS)
def test_inputs_that_work(case):
    session = load(TWO)
    expected = session.run(None, {"x": X, "b": B})[0]
    given = WORKING_FEEDS[case](X)
    assert np.array_equal(session.run(None, {"x": given, "b": B})[0], expected)


@pytest.mark.parametrize("name", ["xxh32", "dyadic"])
def test_an_empty_batch_works(name):
    session = load(nets.hashed_mlp([9, 8, 7], name, 2))
    for _ in range(2):
        y = session(np.empty((0, 9), F32))
        assert y.shape == (0, 7)
        assert y.dtype == F32


def test_nan_inputs_work():
    x = X.copy()
    x[1, 2] = np.nan
    y = load(TWO).run(None, {"x": x, "b": B})[0]
    assert np.isnan(y).all(1).tolist() == [False, True, False]
    assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("ids", [[9], [-10], [0, 2**62], [-(2**63)], [8, 9]], ids=str)
def test_ids_out_of_range(ids):
    with pytest.raises(OpError, match=r"'Gather_y'.*expected -9 to 8"):
        load(TABLE)(np.array(ids))


def test_ids_at_the_edges_work():
    y = load(TABLE)(np.array([-9, 0, 8, -1]))
    assert np.array_equal(y[0], y[1])
    assert np.array_equal(y[2], y[3])
    assert load(TABLE)(np.empty(0, np.int64)).shape == (0, 8)


def test_calls_that_make_no_sense():
    session = load(TWO)
    with pytest.raises(InputError, match="no output 'z'; it has 'y'"):
        session.run(["z"], {"x": X, "b": B})
    with pytest.raises(InputError, match="expected a list of names"):
        session.run("y", {"x": X, "b": B})
    with pytest.raises(InputError, match="2 inputs \\(x, b\\); use run"):
        session(X)
    for keywords in ({"threads": 0}, {"threads": -1}, {"threads": 2.0}, {"threads": True}, {"max_memory": 0}):
        with pytest.raises(InputError, match=r"is .*; expected"):
            hashinfer.InferenceSession(GOOD, **keywords)
    with pytest.raises(InputError, match=r"'CUDAExecutionProvider'.*'CPUExecutionProvider'"):
        hashinfer.InferenceSession(GOOD, providers=["CUDAExecutionProvider"])


def unwritable(shape: tuple[int, ...]) -> np.ndarray:
    return read_only(np.empty(shape, F32))


SHARED = np.empty((2, 3, 8), F32)
REFUSED_OUTS: dict[str, tuple[Callable[[], Any], str]] = {
    "dtype": (lambda: [np.empty((3, 8))], r"out for 'y' is float64\[3, 8\]; expected float32\[3, 8\]"),
    "shape": (lambda: [np.empty((3, 7), F32)], r"out for 'y' is float32\[3, 7\]; expected float32\[3, 8\]"),
    "rank": (lambda: [np.empty(24, F32)], "out for 'y'"),
    "read-only": (lambda: [unwritable((3, 8))], "writable"),
    "Fortran order": (lambda: [np.empty((8, 3), F32).T], "C-contiguous"),
    "strided": (lambda: [np.empty((3, 16), F32)[:, ::2]], "C-contiguous"),
    "big-endian": (lambda: [np.empty((3, 8), ">f4")], "out for 'y'"),
    "a list": (lambda: [[[0.0] * 8] * 3], "is a list; expected an array"),
    "none": (list, "0 arrays; expected one for each of 'y'"),
    "too many": (lambda: [SHARED[0], SHARED[1]], "2 arrays; expected one for each of 'y'"),
    "wrong name": (lambda: {"z": SHARED[0]}, "expected one for each of 'y'"),
}


@pytest.mark.parametrize("case", REFUSED_OUTS)
def test_out_that_does_not_fit(case):
    make, says = REFUSED_OUTS[case]
    with pytest.raises(InputError, match=says):
        load(TWO).run(None, {"x": X, "b": B}, out=make())


def test_out_that_overlaps_the_input_works():
    model = nets.model(
        [
            expand_node(Xxh32(20, 8, 8, 3, 2), "w", "W"),
            node("MatMul", ["x", "W"], ["m"]),
            node("Add", ["m", "x"], ["y"]),
        ],
        {"x": (F32, ["N", 8])},
        {"y": (F32, ["N", 8])},
        {"w": nets.weights(20)},
    )
    session, memory = load(model), nets.weights(40).copy()
    expected = session(memory[:24].reshape(3, 8).copy())
    x, out = memory[:24].reshape(3, 8), memory[8:32].reshape(3, 8)
    (y,) = session.run(None, {"x": x}, out=[out])
    assert y is out
    assert np.array_equal(out, expected)


def test_two_outs_must_not_overlap():
    model = nets.model(
        [node("Neg", ["x"], ["a"]), node("Abs", ["x"], ["b"])],
        {"x": (F32, [4])},
        {"a": (F32, [4]), "b": (F32, [4])},
        {},
    )
    memory = np.empty(6, F32)
    with pytest.raises(InputError, match="share memory"):
        load(model).run(None, {"x": memory[:4].copy()}, out=[memory[:4], memory[2:]])


def test_a_model_whose_shapes_cannot_work_says_so():
    model = plain(node("MatMul", ["x", "c"], ["y"]), c=np.ones((4, 2), F32))
    with pytest.raises(HashinferError, match=r"'MatMul_y'.*3 and 4 differ"):
        load(model).run(None, {"x": np.ones((2, 3), F32)})


def test_a_domain_imported_twice_in_one_version_is_one_import():
    """As skl2onnx writes it."""
    model = edited(lambda m: m.opset_import.append(helper.make_opsetid("", 20)))
    assert [o.domain for o in model.opset_import].count("") == 2
    assert hashinfer.InferenceSession(model.SerializeToString()).get_inputs()
