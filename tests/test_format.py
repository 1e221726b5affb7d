"""The file: what is written is valid ONNX that other runtimes expand bit for bit; what is read need not be ours."""

from __future__ import annotations

import io
import json
import os
import stat
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

import hashinfer
from hashinfer.errors import ModelError, SchemeError
from hashinfer.files import atomic_write
from hashinfer.model.read import read_model
from hashinfer.model.write import expand_body, expand_node, save, with_bodies
from hashinfer.schemes import DOMAIN, SCHEMES, Dyadic, Scheme, Xxh32
from tests import nets
from tests.nets import node

NEWEST = onnx.defs.onnx_opset_version()
OPSETS = range(18, NEWEST + 1)
F32, F = np.float32, TensorProto.FLOAT
SMALL_VECTORS = 10**7

SCHEME_CASES: list[Scheme] = [
    Xxh32(50, 37, 29, 1, 1),
    Xxh32(40, 33, 20, 2**32 - 1, 3),
    Xxh32(64, 9, 33, 42, 64),
    Xxh32(1, 5, 7, 2, 1),
    Dyadic(64, 40, 30, 1, 8),
    Dyadic(64, 32, 90, 2**31, 32),
    Dyadic(96, 20, 17, 3, 32),
    Dyadic(21, 4, 9, 4, 1),
    Dyadic(1, 5, 7, 5, 1),
]
"""Block 1 and more; width below, at and above the rows; K = 1."""


def vector_cases() -> list[Scheme]:
    found = json.loads((Path(__file__).parent / "vectors" / "schemes.json").read_text())
    made = [SCHEMES[n](**{k: v for k, v in c.items() if k != "samples"}) for n in SCHEMES for c in found[n]]
    return [s for s in made if s.virtual_size < SMALL_VECTORS]


def expand_model(scheme: Scheme, w: np.ndarray, opset: int = nets.OPSET, stored: str = "float32") -> onnx.ModelProto:
    """W as the only output; the weight vector stored as float32, float16 or int8."""
    nodes, constants, source = [], {"w": w}, "w"
    if stored == "float16":
        nodes, source = [node("Cast", ["w"], ["wf"], to=TensorProto.FLOAT)], "wf"
    if stored == "int8":
        constants["scale"] = np.array(0.013, F32)
        nodes, source = [node("DequantizeLinear", ["w", "scale"], ["wf"])], "wf"
    nodes.append(expand_node(scheme, source, "W"))
    return nets.model(nodes, {}, {"W": (F32, [scheme.rows, scheme.cols])}, constants, opset)


def weight_vector(count: int, stored: str = "float32") -> np.ndarray:
    if stored == "int8":
        return np.random.default_rng(0).integers(-127, 128, count).astype(np.int8)
    return nets.weights(count).astype(stored)


def ort_session(data: bytes, opset: int, needs: str = "Identity") -> ort.InferenceSession:
    """onnxruntime's session; skips where its build loads no model of this opset, or lacks its version of op `needs`."""
    try:
        ort.InferenceSession(trivial(opset, needs), providers=["CPUExecutionProvider"])
    except (ort_state.Fail, ort_state.InvalidGraph, ort_state.InvalidArgument, ort_state.NotImplemented) as error:
        pytest.skip(f"onnxruntime {ort.__version__} loads no {needs} of opset {opset}: {str(error)[:80]}")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def trivial(opset: int, op_type: str) -> bytes:
    """A model of one standard node."""
    quantized = op_type == "DequantizeLinear"
    x = helper.make_tensor_value_info("x", TensorProto.INT8 if quantized else F, [1])
    scale = [numpy_helper.from_array(np.array(0.5, F32), "scale")] if quantized else []
    nodes = [helper.make_node(op_type, ["x", "scale"] if quantized else ["x"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("y", F, [1])], scale)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


def written(model: onnx.ModelProto, folder: Path) -> bytes:
    """The bytes that `save` writes, after onnx's strictest checks."""
    save(model, folder / "m.hnet")
    data = (folder / "m.hnet").read_bytes()
    proto = onnx.load_from_string(data)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    return data


def bits(array: np.ndarray) -> np.ndarray:
    assert array.dtype == np.float32
    return array.view(np.uint32)


def check_everywhere(data: bytes, expected: np.ndarray, opset: int = nets.OPSET, needs: str = "Identity") -> None:
    """W has the same bits here, in the reference evaluator and in onnxruntime."""
    assert np.array_equal(bits(hashinfer.InferenceSession(data).run(None, {})[0]), bits(expected))
    assert np.array_equal(bits(ReferenceEvaluator(onnx.load_from_string(data)).run(None, {})[0]), bits(expected))
    assert np.array_equal(bits(ort_session(data, opset, needs).run(None, {})[0]), bits(expected))


@pytest.mark.parametrize("scheme", SCHEME_CASES, ids=str)
def test_w_is_the_same_everywhere(scheme, tmp_path):
    w = weight_vector(scheme.buckets)
    check_everywhere(written(expand_model(scheme, w), tmp_path), scheme.expand(w))


@pytest.mark.parametrize("scheme", vector_cases(), ids=str)
def test_w_of_the_vectors_file(scheme, tmp_path):
    w = weight_vector(scheme.buckets)
    check_everywhere(written(expand_model(scheme, w), tmp_path), scheme.expand(w))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("scheme", [SCHEME_CASES[1], SCHEME_CASES[5]], ids=["xxh32", "dyadic"])
def test_every_opset(scheme, opset, tmp_path):
    w = weight_vector(scheme.buckets)
    check_everywhere(written(expand_model(scheme, w, opset), tmp_path), scheme.expand(w), opset)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("stored", ["float16", "int8"])
@pytest.mark.parametrize("scheme", [SCHEME_CASES[1], SCHEME_CASES[5]], ids=["xxh32", "dyadic"])
def test_small_weight_vectors(scheme, stored, opset, tmp_path):
    w = weight_vector(scheme.buckets, stored)
    if stored == "int8" and opset < 19:
        pytest.skip("DequantizeLinear of int8 has a reference implementation from opset 19 on")
    values = w.astype(F32) * (F32(0.013) if stored == "int8" else F32(1))
    data = written(expand_model(scheme, w, opset, stored), tmp_path)
    (hashed,) = [s["hashed"] for s in hashinfer.InferenceSession(data).report()["steps"] if "hashed" in s]
    assert (hashed["dtype"], hashed["stored_bytes"]) == (stored, w.nbytes)
    needs = "DequantizeLinear" if stored == "int8" else "Identity"
    check_everywhere(data, scheme.expand(values), opset, needs)


@pytest.mark.parametrize("opset", [18, NEWEST])
@pytest.mark.parametrize("name", list(SCHEMES))
def test_a_net_gives_what_onnxruntime_gives(name, opset, tmp_path):
    data = written(nets.hashed_mlp([33, 40, 50, 10], name, 4, opset=opset), tmp_path)
    x = nets.weights(5 * 33, 7).reshape(5, 33)
    ours = hashinfer.InferenceSession(data).run(None, {"x": x})[0]
    np.testing.assert_allclose(ours, ReferenceEvaluator(onnx.load_from_string(data)).run(None, {"x": x})[0], atol=1e-4)
    np.testing.assert_allclose(ours, ort_session(data, opset).run(None, {"x": x})[0], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- writing


def test_the_written_file_says_everything():
    proto = nets.single(Dyadic(64, 32, 20, 5, 32))
    (function,) = proto.functions
    assert (function.domain, function.name) == (DOMAIN, "ExpandDyadic")
    assert {o.domain: o.version for o in proto.opset_import} == {"": nets.OPSET, DOMAIN: 1}
    assert {o.domain: o.version for o in function.opset_import} == {"": nets.OPSET}
    assert {a.name: a.i for a in proto.graph.node[0].attribute} == {"seed": 5, "rows": 32, "cols": 20, "width": 32}
    assert {a.name for a in expand_node(Xxh32(4, 2, 2, 0), "w", "W").attribute} == {"seed", "rows", "cols", "block"}
    assert proto.ir_version >= 9


def test_writing_is_deterministic(tmp_path):
    model = nets.hashed_mlp([9, 8, 7], "dyadic", 2)
    assert written(model, tmp_path) == written(with_bodies(model), tmp_path)


def test_bodies_are_replaced_and_other_functions_stay():
    model = nets.single(Xxh32(4, 3, 2, 0))
    model.functions[0].node[0].op_type = "Nonsense"
    other = onnx.parser.parse_function('<opset_import: ["" : 20], domain: "mine"> F (x) => (y) { y = Neg (x) }')
    model.functions.append(other)
    again = with_bodies(model)
    assert {(f.domain, f.name) for f in again.functions} == {("mine", "F"), (DOMAIN, "ExpandXxh32")}
    assert all(n.op_type != "Nonsense" for f in again.functions for n in f.node)


def test_expands_inside_subgraphs_and_functions_get_their_bodies():
    model = if_model(inside=True)
    assert [f.name for f in model.functions] == ["ExpandXxh32"]


@pytest.mark.parametrize("opset", [17, 13])
def test_an_old_opset_is_refused_on_writing(opset):
    model = nets.model([node("Relu", ["x"], ["y"])], {"x": (F32, [1])}, {"y": (F32, [1])}, {}, opset=opset)
    with pytest.raises(ModelError, match=f"opset is {opset}.*at least 18"):
        with_bodies(model)


def test_unknown_scheme_has_no_body():
    with pytest.raises(SchemeError, match="ExpandMd5"):
        expand_body("ExpandMd5", 20)


def test_an_invalid_model_is_not_written(tmp_path):
    model = nets.model([node("Relu", ["nowhere"], ["y"])], {}, {"y": (F32, [1])}, {})
    (tmp_path / "m.hnet").write_bytes(b"old")
    with pytest.raises(ModelError, match="not valid ONNX"):
        save(model, tmp_path / "m.hnet")
    assert (tmp_path / "m.hnet").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.hnet"]


def test_a_failure_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "m.hnet"
    target.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_write(target) as file:
            file.write(b"half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail_half_way()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.hnet"]


def test_writing_to_a_folder_or_into_none(tmp_path):
    model = nets.single(Xxh32(4, 3, 2, 0))
    with pytest.raises(IsADirectoryError, match="Is a directory"):
        save(model, tmp_path)
    with pytest.raises(FileNotFoundError):
        save(model, tmp_path / "missing" / "m.hnet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664])
def test_permissions_are_kept(tmp_path, mode):
    target = tmp_path / "m.hnet"
    target.write_bytes(b"old")
    target.chmod(mode)
    save(nets.single(Xxh32(4, 3, 2, 0)), target)
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_new_file_has_the_usual_permissions(tmp_path):
    save(nets.single(Xxh32(4, 3, 2, 0)), tmp_path / "m.hnet")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "m.hnet").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_readers_never_see_half_a_file(tmp_path):
    target, stop, seen = tmp_path / "m.hnet", threading.Event(), set()
    with atomic_write(target) as file:
        file.write(b"a" * 1000)

    def look() -> None:
        while not stop.is_set():
            seen.add(target.read_bytes())

    reader = threading.Thread(target=look)
    reader.start()
    for letter in (b"b", b"a") * 20:
        with atomic_write(target) as file:
            for _ in range(1000):
                file.write(letter)
    stop.set()
    reader.join()
    assert seen <= {b"a" * 1000, b"b" * 1000}


# ------------------------------------------------------------------------------------------------------------- reading


class Stream(io.RawIOBase):
    """A file object that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, size: int = -1) -> bytes:
        count = len(self.data) if size < 0 else size
        part, self.data = self.data[:count], self.data[count:]
        return part


SOURCES = {
    "path": lambda path: path,
    "text path": str,
    "bytes": lambda path: path.read_bytes(),
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "stream": lambda path: Stream(path.read_bytes()),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_sources(kind, tmp_path):
    model = nets.hashed_mlp([9, 8, 7], "dyadic", 2)
    save(model, tmp_path / "m.hnet")
    x = nets.weights(18).reshape(2, 9)
    expected = hashinfer.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]
    assert np.array_equal(hashinfer.InferenceSession(SOURCES[kind](tmp_path / "m.hnet"))(x), expected)
    assert read_model(SOURCES[kind](tmp_path / "m.hnet")).graph.inputs[0].shape == ("N", 9)


def test_an_open_file(tmp_path):
    save(nets.single(Xxh32(4, 3, 2, 0)), tmp_path / "m.hnet")
    with (tmp_path / "m.hnet").open("rb") as file:
        assert hashinfer.InferenceSession(file)(np.ones((1, 3), F32)).shape == (1, 2)


@pytest.mark.parametrize("body", ["none", "lies", "of another opset", "needs an unknown op"])
@pytest.mark.parametrize("scheme", [Xxh32(20, 9, 8, 3, 2), Dyadic(16, 9, 8, 3, 16)], ids=["xxh32", "dyadic"])
def test_bodies_are_neither_needed_nor_trusted(scheme, body):
    model = nets.single(scheme)
    if body == "none":
        del model.functions[:]
    if body == "lies":
        del model.functions[0].node[:]
        model.functions[0].node.append(helper.make_node("Neg", ["w"], ["W"]))
    if body == "of another opset":
        model.functions[0].opset_import[0].version = 999
    if body == "needs an unknown op":
        model.functions[0].node[0].domain = "nobody.knows"
    x = nets.weights(18).reshape(2, 9)
    y = hashinfer.InferenceSession(model.SerializeToString())(x)
    np.testing.assert_allclose(y, x @ scheme.expand(nets.weights(scheme.buckets)), atol=1e-5)


def same_as_ort(model: onnx.ModelProto, feeds: dict[str, np.ndarray], **tolerance: float) -> list[np.ndarray]:
    data = model.SerializeToString()
    ours = hashinfer.InferenceSession(data).run(None, feeds)
    theirs = ort_session(data, nets.OPSET).run(None, feeds)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **({"atol": 1e-5} | tolerance))
    return ours


def functions(text: str) -> list[onnx.FunctionProto]:
    return [onnx.parser.parse_function(part) for part in text.strip().split("\n\n")]


FUNCTIONS = """
<opset_import: ["" : 20, "mine" : 1], domain: "mine">
Outer <slope: float = 0.25, times> (a, b) => (y, z) {
    t = mine.Inner <alpha: float = @slope> (a, b)
    y = mine.Inner <alpha: float = @slope> (t, b)
    n = Constant <value_int: int = @times> ()
    k = CastLike (n, t)
    z = Mul (t, k)
}

<opset_import: ["" : 20], domain: "mine">
Inner <alpha: float> (a, b) => (y) {
    t = Add (a, b)
    y = LeakyRelu <alpha: float = @alpha> (t)
}
"""


@pytest.mark.parametrize("attributes", [{"times": 3}, {"times": 2, "slope": 0.5}], ids=["default", "given"])
def test_functions_of_other_domains(attributes):
    """Nested, with references to attributes and defaults; their inner names are those of the graph around them."""
    calls = [
        helper.make_node("Outer", ["x", "t"], ["a", "b"], domain="mine", **attributes),
        helper.make_node("Outer", ["b", "x"], ["y", "n"], domain="mine", **attributes),
        node("Add", ["a", "n"], ["k"]),
    ]
    model = nets.model(
        calls,
        {"x": (F32, [3]), "t": (F32, [3])},
        {"y": (F32, [3]), "k": (F32, [3])},
        {},
        functions=functions(FUNCTIONS),
        imports={"mine": 1},
    )
    same_as_ort(model, {"x": np.array([-2, 1, -0.5], F32), "t": np.array([1, -3, 0.25], F32)})


def test_a_hashed_layer_inside_a_function():
    text = f"""<opset_import: ["" : 20, "{DOMAIN}" : 1], domain: "mine">
Layer <rows: int, cols: int> (x, w) => (y) {{
    W = {DOMAIN}.ExpandXxh32 <seed: int = 7, rows: int = @rows, cols: int = @cols, block: int = 2> (w)
    y = MatMul (x, W)
}}"""
    call = helper.make_node("Layer", ["x", "w"], ["y"], domain="mine", rows=9, cols=8)
    values = {"x": (F32, ["N", 9])}, {"y": (F32, ["N", 8])}, {"w": nets.weights(20)}
    model = nets.model([call], *values, functions=functions(text), imports={"mine": 1})
    same_as_ort(model, {"x": nets.weights(18).reshape(2, 9)})
    steps = hashinfer.InferenceSession(model.SerializeToString()).report()["steps"]
    assert "ExpandXxh32+MatMul" in [s["op"] for s in steps]


def test_optional_inputs_of_functions():
    text = """<opset_import: ["" : 20], domain: "mine">
Between (x, low, high) => (y) { y = Clip (x, low, high) }"""
    calls = [
        helper.make_node("Between", ["x", "one"], ["a"], domain="mine"),
        helper.make_node("Between", ["x", "", "one"], ["b"], domain="mine"),
    ]
    outputs = {"a": (F32, [3]), "b": (F32, [3])}
    constants = {"one": np.array(1, F32)}
    model = nets.model(calls, {"x": (F32, [3])}, outputs, constants, functions=functions(text), imports={"mine": 1})
    a, b = hashinfer.InferenceSession(model.SerializeToString()).run(None, {"x": np.array([0, 1, 2], F32)})
    assert a.tolist() == [1, 1, 2]
    assert b.tolist() == [0, 1, 1]


def graph(name, nodes, inputs=(), outputs=(), constants=()):
    def values(kinds):
        return [helper.make_tensor_value_info(n, t, s) for n, t, s in kinds]

    made = [numpy_helper.from_array(a, n) for n, a in dict(constants).items()]
    return helper.make_graph(list(nodes), name, values(inputs), values(outputs), made)


def if_model(inside: bool) -> onnx.ModelProto:
    """A hashed MatMul in one branch; its W made there, or captured from outside."""
    scheme = Xxh32(20, 9, 8, 3, 2)
    expand = expand_node(scheme, "w", "W")
    then = graph("then", [*([expand] if inside else []), node("MatMul", ["x", "W"], ["t"])], outputs=[("t", F, None)])
    other = graph("else", [node("Slice", ["x", "from", "to", "axis"], ["e"])], outputs=[("e", F, None)])
    nodes = [*([] if inside else [expand]), node("If", ["c"], ["y"], then_branch=then, else_branch=other)]
    constants = {"w": nets.weights(20), "from": np.array([0]), "to": np.array([8]), "axis": np.array([1])}
    return nets.model(nodes, {"x": (F32, ["N", 9]), "c": (np.bool_, [])}, {"y": (F32, ["N", 8])}, constants)


@pytest.mark.parametrize("inside", [True, False], ids=["W inside", "W captured"])
@pytest.mark.parametrize("condition", [True, False])
def test_if(inside, condition):
    x = nets.weights(27).reshape(3, 9)
    same_as_ort(if_model(inside), {"x": x, "c": np.array(condition)})


@pytest.mark.parametrize("trips", [0, 1, 4])
def test_loop(trips):
    """A hashed layer in the body, W captured from outside, a value carried and one stacked."""
    body = graph(
        "body",
        [
            node("MatMul", ["state", "W"], ["m"]),
            node("Tanh", ["m"], ["next"]),
            node("Identity", ["go"], ["again"]),
            node("ReduceSum", ["next"], ["sum"], keepdims=0),
        ],
        [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("state", F, [2, 9])],
        [("again", TensorProto.BOOL, []), ("next", F, [2, 9]), ("sum", F, [])],
    )
    scheme = Dyadic(32, 9, 9, 3, 16)
    nodes = [expand_node(scheme, "w", "W"), node("Loop", ["n", "", "x"], ["y", "sums"], body=body)]
    model = nets.model(
        nodes,
        {"x": (F32, [2, 9]), "n": (np.int64, [])},
        {"y": (F32, [2, 9]), "sums": (F32, ["T"])},
        {"w": nets.weights(32)},
    )
    same_as_ort(model, {"x": nets.weights(18).reshape(2, 9), "n": np.array(trips)})


def test_loop_stops_by_its_condition():
    body = graph(
        "body",
        [node("Add", ["v", "v"], ["w"]), node("Less", ["w", "limit"], ["more"])],
        [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("v", F, [])],
        [("more", TensorProto.BOOL, []), ("w", F, [])],
    )
    nodes = [node("Loop", ["", "yes", "x"], ["y"], body=body)]
    constants = {"yes": np.array(True), "limit": np.array(100, F32)}
    model = nets.model(nodes, {"x": (F32, [])}, {"y": (F32, [])}, constants)
    (y,) = same_as_ort(model, {"x": np.array(3, F32)})
    assert y == 192


@pytest.mark.parametrize("backward", [0, 1])
def test_scan(backward):
    body = graph(
        "body",
        [
            expand_node(Xxh32(7, 3, 3, 1), "w", "W"),
            node("MatMul", ["state", "W"], ["m"]),
            node("Add", ["m", "part"], ["next"]),
            node("Mul", ["next", "next"], ["square"]),
        ],
        [("state", F, [1, 3]), ("part", F, [1, 3])],
        [("next", F, [1, 3]), ("square", F, [1, 3])],
    )
    scan = node(
        "Scan",
        ["s", "x"],
        ["last", "squares"],
        body=body,
        num_scan_inputs=1,
        scan_input_axes=[1],
        scan_output_axes=[2],
        scan_input_directions=[backward],
        scan_output_directions=[1 - backward],
    )
    inputs = {"s": (F32, [1, 3]), "x": (F32, [1, 5, 3])}
    outputs = {"last": (F32, [1, 3]), "squares": (F32, [1, 3, 5])}
    model = nets.model([scan], inputs, outputs, {"w": nets.weights(7)})
    same_as_ort(model, {"s": np.ones((1, 3), F32), "x": nets.weights(15).reshape(1, 5, 3)})


def test_subgraph_names_may_hide_nothing_and_repeat():
    """Two branches that use the same inner names, and a branch whose output is an outer value."""
    branches = [
        graph("a", [node("Neg", ["x"], ["t"]), node("Abs", ["t"], ["u"])], outputs=[("u", F, None)]),
        graph("b", [node("Exp", ["x"], ["t"]), node("Neg", ["t"], ["u"])], outputs=[("u", F, None)]),
    ]
    nodes = [
        node("If", ["c"], ["p"], then_branch=branches[0], else_branch=branches[1]),
        node("Not", ["c"], ["d"]),
        node("If", ["d"], ["q"], then_branch=branches[0], else_branch=branches[1]),
        node("Add", ["p", "q"], ["y"]),
    ]
    model = nets.model(nodes, {"x": (F32, [4]), "c": (np.bool_, [])}, {"y": (F32, [4])}, {})
    for condition in (True, False):
        same_as_ort(model, {"x": nets.weights(4), "c": np.array(condition)})


# ------------------------------------------------------------------------------------- how Expand meets its consumers


def expand_consumers() -> dict[str, tuple[list[onnx.NodeProto], dict, dict, dict, str]]:
    """nodes, inputs, outputs, constants, and the label of the step that the product becomes."""
    square = Dyadic(64, 16, 12, 3, 16)
    w, x = {"w": nets.weights(64)}, {"x": (F32, ["N", 16])}
    y = {"y": (F32, ["N", 12])}
    e = expand_node(square, "w", "W")
    turned = expand_node(Dyadic(64, 12, 16, 3, 16), "w", "W")
    table = expand_node(Xxh32(64, 30, 12, 3, 4), "w", "W")
    conv = expand_node(Dyadic(64, 18, 5, 3, 32), "w", "W")
    c = {"c": nets.weights(12)}
    shape = {"shape": np.array([5, 2, 3, 3])}
    image, feature = {"x": (F32, ["N", 2, 6, 5])}, {"y": (F32, ["N", 5, 4, 3])}
    conv_nodes = [conv, node("Transpose", ["W"], ["T"], perm=[1, 0]), node("Reshape", ["T", "shape"], ["K"])]
    return {
        "MatMul": ([e, node("MatMul", ["x", "W"], ["y"])], x, y, w, "ExpandDyadic+MatMul"),
        "MatMul 3-D": (
            [e, node("MatMul", ["x", "W"], ["y"])],
            {"x": (F32, ["N", 3, 16])},
            {"y": (F32, ["N", 3, 12])},
            w,
            "ExpandDyadic+MatMul",
        ),
        "bias and Relu": (
            [e, node("MatMul", ["x", "W"], ["m"]), node("Add", ["c", "m"], ["a"]), node("Relu", ["a"], ["y"])],
            x,
            y,
            w | c,
            "ExpandDyadic+MatMul+Add+Relu",
        ),
        "Gemm": ([e, node("Gemm", ["x", "W", "c"], ["y"], alpha=0.5, beta=2.0)], x, y, w | c, "ExpandDyadic+Gemm"),
        "Gemm transB": ([turned, node("Gemm", ["x", "W"], ["y"], transB=1)], x, y, w, "ExpandDyadic+Gemm"),
        "Gemm transA": (
            [e, node("Gemm", ["x", "W", "c"], ["y"], transA=1)],
            {"x": (F32, [16, 3])},
            {"y": (F32, [3, 12])},
            w | c,
            "ExpandDyadic+Gemm",
        ),
        "Transpose then MatMul": (
            [turned, node("Transpose", ["W"], ["T"]), node("MatMul", ["x", "T"], ["y"])],
            x,
            y,
            w,
            "ExpandDyadic+MatMul",
        ),
        "Gather": (
            [table, node("Gather", ["W", "i"], ["y"])],
            {"i": (np.int64, ["N", 2])},
            {"y": (F32, ["N", 2, 12])},
            w,
            "ExpandXxh32+Gather",
        ),
        "Conv": ([*conv_nodes, node("Conv", ["x", "K"], ["y"])], image, feature, w | shape, "ExpandDyadic+Conv"),
        "used twice": (
            [
                e,
                node("MatMul", ["x", "W"], ["m"]),
                node("MatMul", ["m", "V"], ["n"]),
                node("MatMul", ["n", "W"], ["y"]),
            ],
            x,
            y,
            w | {"V": nets.weights(12 * 16).reshape(12, 16)},
            "ExpandDyadic+MatMul",
        ),
        "left operand": (
            [e, node("MatMul", ["W", "x"], ["y"])],
            {"x": (F32, [12, 3])},
            {"y": (F32, [16, 3])},
            w,
            "ExpandDyadic",
        ),
        "elementwise": (
            [e, node("Mul", ["x", "W"], ["y"])],
            {"x": (F32, [1, 12])},
            {"y": (F32, [16, 12])},
            w,
            "ExpandDyadic",
        ),
        "Gather axis 1": (
            [table, node("Gather", ["W", "i"], ["y"], axis=1)],
            {"i": (np.int64, ["N"])},
            {"y": (F32, [30, "N"])},
            w,
            "ExpandXxh32",
        ),
        "both": (
            [
                e,
                node("MatMul", ["x", "W"], ["m"]),
                node("ReduceSum", ["W"], ["s"], keepdims=0),
                node("Add", ["m", "s"], ["y"]),
            ],
            x,
            y,
            w,
            "ExpandDyadic+MatMul",
        ),
        "computed weights": (
            [node("Neg", ["v"], ["w"]), e, node("MatMul", ["x", "W"], ["y"])],
            x | {"v": (F32, [64])},
            y,
            {},
            "ExpandDyadic",
        ),
    }


@pytest.mark.parametrize("case", expand_consumers())
def test_consumers_of_expand(case, tmp_path):
    nodes, inputs, outputs, constants, label = expand_consumers()[case]
    model = nets.model(nodes, inputs, outputs, constants)
    data = written(model, tmp_path)
    rng = np.random.default_rng(1)
    feeds = {}
    for name, (dtype, shape) in inputs.items():
        sizes = [4 if d == "N" else d for d in shape]
        feeds[name] = rng.standard_normal(sizes).astype(F32) if dtype is F32 else rng.integers(-12, 12, sizes)
    session = hashinfer.InferenceSession(data)
    labels = [s["op"].lower() for s in session.report({n: a.shape for n, a in feeds.items()})["steps"]]
    assert label.lower() in labels
    same_as_ort(onnx.load_from_string(data), feeds, rtol=1e-5, atol=1e-4)


def test_writing_through_a_link_and_into_a_pipe(tmp_path):
    model = nets.single(Xxh32(4, 3, 2, 0))
    (tmp_path / "real.hnet").write_bytes(b"old")
    (tmp_path / "link.hnet").symlink_to(tmp_path / "real.hnet")
    save(model, tmp_path / "link.hnet")
    assert (tmp_path / "link.hnet").is_symlink()
    assert read_model(tmp_path / "real.hnet").opset == nets.OPSET
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    save(model, tmp_path / "pipe")
    reader.join()
    assert got == [(tmp_path / "real.hnet").read_bytes()]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.hnet", "pipe", "real.hnet"]


def test_scan_outputs_of_no_trips_have_the_declared_type():
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Constant", [], ["v"], value_ints=[1, 2, 3])],
        "body",
        [helper.make_tensor_value_info("k", 7, []), helper.make_tensor_value_info("go", 9, [])],
        [helper.make_tensor_value_info("on", 9, []), helper.make_tensor_value_info("v", 7, [3])],
    )
    made = nets.model(
        [node("Loop", ["n", "yes"], ["y"], body=body)],
        {"n": (np.int64, [])},
        {"y": (np.int64, [None, 3])},
        {"yes": np.array(True)},
    )
    for trips in (0, 2):
        same_as_ort(made, {"n": np.array(trips)})
