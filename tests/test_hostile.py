"""Models made to hurt: whatever a file says, a typed error or an answer, in bounded memory and time.

What test_bad_input holds, one wrong thing at a time with its message, is not repeated here.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import hashinfer
from hashinfer.errors import HashinferError, InputError, MemoryLimitError, ModelError, OpError, TimeLimitError
from hashinfer.model.write import expand_node
from hashinfer.plan.limits import Limits, in_time
from hashinfer.schemes import Dyadic, Xxh32
from tests import fuzz, nets
from tests.nets import node
from tests.processes import unmeasured

F32, I64 = np.float32, np.int64
MIB = 1 << 20
ROOM = 256 * MIB
HANGS = 60
"""Seconds after which something has hung: no measure of speed."""
HERE = Path(__file__).parent
SHIPPED = HERE.parent / "models"


def load(model: ModelProto, **options: Any) -> hashinfer.InferenceSession:
    return hashinfer.InferenceSession(model.SerializeToString(), threads=1, **options)


def simple(*nodes: onnx.NodeProto, x: Any = (F32, ["N"]), y: Any = (F32, None), **constants: Any) -> ModelProto:
    return nets.model(nodes, {"x": x}, {"y": y}, {k: np.asarray(v) for k, v in constants.items()})


# -------------------------------------------------------------------------------------------- every field of every file

VALUES = (0, 1, -1, 2**31, 2**63 - 1)
FILES = [path.name for path in sorted((HERE / "frozen").glob("*.hnet"))]
WHOLE = ["mlp-dyadic-float32.hnet", "conv-xxh32-int8.hnet", "bag-mean.hnet"]
"""Of these the bodies are changed as well, which nobody reads: the answer stays what it was."""


def integers(model: ModelProto) -> Iterator[tuple[Any, Any, int | None]]:
    """Every integer in a model: the message, the field, the index where it is a list."""
    for message, field in fuzz.fields(model, lambda f: f.cpp_type in (1, 2, 3, 4, 8)):
        count = min(len(getattr(message, field.name)), 8) if field.is_repeated else 1
        yield from ((message, field, k if field.is_repeated else None) for k in range(count))


def assigned(message: Any, field: Any, index: int | None, value: int) -> bool:
    """Whether the field can hold the value, and now does."""
    try:
        if index is None:
            setattr(message, field.name, value)
        else:
            getattr(message, field.name)[index] = value
    except (ValueError, OverflowError):
        return False
    return True


def outcome(data: bytes) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fuzz.check(data)


@pytest.mark.parametrize("file", FILES)
def test_every_integer_of_a_file_set_to_odd_values(file):
    model = onnx.load(HERE / "frozen" / file)
    del model.functions[:]
    assert outcome(model.SerializeToString()) == "answer"
    outcomes: dict[str, int] = {}
    start = time.perf_counter()
    with fuzz.confined(ROOM):
        for message, field, index in list(integers(model)):
            before = getattr(message, field.name) if index is None else getattr(message, field.name)[index]
            for value in VALUES:
                if value != before and assigned(message, field, index, value):
                    found = outcome(model.SerializeToString())
                    outcomes[found] = outcomes.get(found, 0) + 1
            assert assigned(message, field, index, before)
    assert time.perf_counter() - start < HANGS
    assert outcomes["ModelError"] > 20
    assert outcomes["answer"] > 3


@pytest.mark.parametrize("file", WHOLE)
def test_bodies_that_lie_change_nothing(file):
    """The engine goes by the op: whatever its body says, or where there is none, the answer is the same."""
    model = onnx.load(HERE / "frozen" / file)
    with np.load((HERE / "frozen" / file).with_suffix(".npz")) as arrays:
        feed = {key.removeprefix("in "): arrays[key] for key in arrays.files if key.startswith("in ")}
    expected = load(model).run(None, feed)
    for function in model.functions:
        for message, field in fuzz.fields(function, lambda f: f.cpp_type in (1, 2, 3, 4)):
            if field.name in ("version", "data_type"):
                continue
            for k in range(len(getattr(message, field.name)) if field.is_repeated else 1):
                assigned(message, field, k if field.is_repeated else None, 1)
    lying = load(model)
    del model.functions[:]
    for session in (lying, load(model)):
        assert all(np.array_equal(a, b) for a, b in zip(session.run(None, feed), expected, strict=True))


@pytest.mark.parametrize("name", ["mnist-dyadic-64x", "mnist-xxh32-64x", "mnist-dyadic-8x", "mnist-xxh32-8x"])
def test_every_length_in_a_shipped_model_set_to_odd_values(name):
    """Dims, data types and attributes of the models in the repository."""
    model = onnx.load(SHIPPED / f"{name}.hnet")
    del model.functions[:]
    start, found = time.perf_counter(), []
    with fuzz.confined(ROOM):
        for message, field, index in list(integers(model)):
            if isinstance(message, onnx.ModelProto | onnx.OperatorSetIdProto):
                continue
            before = getattr(message, field.name) if index is None else getattr(message, field.name)[index]
            odd = (v for v in VALUES if v != before and assigned(message, field, index, v))
            found.extend(outcome(model.SerializeToString()) for _ in odd)
            assert assigned(message, field, index, before)
    assert time.perf_counter() - start < HANGS
    assert set(found) >= {"ModelError", "answer"}


# ---------------------------------------------------------------------------------------------- copies without number


def repeated_calls(count: int, *, tensor: int = 0, name: int = 0) -> ModelProto:
    """A function called `count` times, with a constant of `tensor` bytes or names of `name` characters inside."""
    value = numpy_helper.from_array(np.zeros(max(tensor // 4, 1), F32))
    inside = [
        helper.make_node("Constant", [], ["c" + "n" * name], value=value, name="k" * name),
        helper.make_node("Add", ["a", "c" + "n" * name], ["b"], name="l" * name),
    ]
    body = helper.make_function("f", "F", ["a"], ["b"], inside, [helper.make_opsetid("", 20)])
    calls = [
        helper.make_node("F", ["x" if k == 0 else f"t{k}"], ["y" if k == count - 1 else f"t{k + 1}"], domain="f")
        for k in range(count)
    ]
    model = nets.model([node("Identity", ["x"], ["y"])], {"x": (F32, ["N"])}, {"y": (F32, None)}, {})
    del model.graph.node[:]
    model.graph.node.extend(calls)
    model.functions.append(body)
    model.opset_import.append(helper.make_opsetid("f", 1))
    return model


@pytest.mark.parametrize("inside", [{"tensor": MIB}, {"name": 4000}], ids=["tensor", "names"])
def test_what_a_function_holds_is_not_copied_at_every_call(inside):
    with fuzz.confined(ROOM):
        session = load(repeated_calls(15000, **inside), max_memory=64 * MIB)
        assert len(session.get_outputs()) == 1


def test_names_have_a_longest():
    with pytest.raises(ModelError, match=r"NodeProto\.output 'cnn.* has 5001 characters; expected at most 4096"):
        load(repeated_calls(2, name=5000))


def test_depth_is_counted_through_functions_whose_size_is_known():
    """Each function alone is flat enough; called from inside each other's subgraphs they are not."""

    def deep(inner: onnx.NodeProto, levels: int) -> onnx.NodeProto:
        for _ in range(levels):
            branch = helper.make_graph([inner], "g", [], [onnx.ValueInfoProto(name=inner.output[0])])
            inner = helper.make_node("If", ["c"], ["b"], then_branch=branch, else_branch=branch)
        return inner

    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    functions, calls = [], []
    for k in range(12):
        leaf = (
            helper.make_node("Identity", ["a"], ["b"])
            if k == 0
            else helper.make_node(f"F{k - 1}", ["a", "c"], ["b"], domain="f")
        )
        functions.append(helper.make_function("f", f"F{k}", ["a", "c"], ["b"], [deep(leaf, 6)], opsets))
        calls.append(helper.make_node(f"F{k}", ["x", "c"], [f"y{k}"], domain="f"))
    model = simple(node("Identity", ["x"], ["y"]), c=np.array(True))
    model.graph.node.extend(calls)
    model.functions.extend(functions)
    model.opset_import.append(helper.make_opsetid("f", 1))
    with pytest.raises(ModelError, match=r"nested more than 24 deep|nodes after its functions"):
        load(model)


# --------------------------------------------------------------------------------------------------------------- memory

HUGE = np.array([2**20, 2**20])
GROWING: dict[str, Callable[[], ModelProto]] = {
    "Expand": lambda: simple(node("Expand", ["x", "s"], ["y"]), x=(F32, [1, 1]), s=HUGE),
    "Tile of text": lambda: simple(node("Tile", ["x", "s"], ["y"]), x=(TensorProto.STRING, [1, 1]), s=HUGE),
    "Tile": lambda: simple(node("Tile", ["x", "s"], ["y"]), x=(F32, [1, 1]), s=HUGE),
    "ConstantOfShape": lambda: simple(node("ConstantOfShape", ["s"], ["y"]), s=HUGE),
    "ConstantOfShape of a narrow type": lambda: simple(
        node("ConstantOfShape", ["s"], ["y"], value=helper.make_tensor("v", TensorProto.BFLOAT16, [1], [1.0])), s=HUGE
    ),
    "Range": lambda: simple(node("Range", ["a", "b", "c"], ["y"]), a=np.array(0), b=np.array(2**40), c=np.array(1)),
    "OneHot": lambda: simple(
        node("OneHot", ["x", "d", "v"], ["y"]), x=(I64, [1]), d=np.array(2**40), v=np.array([0, 1], F32)
    ),
    "Pad": lambda: simple(node("Pad", ["x", "p"], ["y"]), x=(F32, [1, 1]), p=np.array([0, 0, 2**20, 2**20])),
    "Pad by reflection": lambda: simple(
        node("Pad", ["x", "p"], ["y"], mode="wrap"), x=(F32, [1, 1]), p=np.array([0, 0, 2**20, 2**20])
    ),
    "Resize to sizes": lambda: simple(
        node("Resize", ["x", "", "", "s"], ["y"]), x=(F32, [1, 1, 1, 1]), s=np.array([1, 1, 2**20, 2**20])
    ),
    "Resize by scales": lambda: simple(
        node("Resize", ["x", "", "s"], ["y"], mode="cubic"),
        x=(F32, [1, 1, 2, 2]),
        s=np.array([1, 1, 2**20, 2**20], F32),
    ),
    "CenterCropPad": lambda: simple(node("CenterCropPad", ["x", "s"], ["y"]), x=(F32, [1, 1]), s=HUGE),
    "RandomNormal": lambda: simple(node("RandomNormal", [], ["y"], shape=[2**20, 2**20])),
    "RandomUniform": lambda: simple(node("RandomUniform", [], ["y"], shape=[2**20, 2**20])),
    "HannWindow": lambda: simple(node("HannWindow", ["n"], ["y"]), n=np.array(2**40)),
    "MelWeightMatrix": lambda: simple(
        node("MelWeightMatrix", ["m", "d", "r", "a", "b"], ["y"]),
        m=np.array(2**20),
        d=np.array(2**21),
        r=np.array(8000),
        a=np.array(0.0, F32),
        b=np.array(4000.0, F32),
    ),
    "DFT": lambda: simple(node("DFT", ["x", "n", "k"], ["y"]), x=(F32, [1, 4, 1]), n=np.array(2**40), k=np.array(1)),
    "ConvTranspose": lambda: simple(
        node("ConvTranspose", ["x", "w"], ["y"], strides=[2**20, 2**20]),
        x=(F32, [1, 1, 9, 9]),
        w=np.ones((1, 1, 1, 1), F32),
    ),
    "Conv of much padding": lambda: simple(
        node("Conv", ["x", "w"], ["y"], pads=[2**20] * 4), x=(F32, [1, 1, 2, 2]), w=np.ones((1, 1, 1, 1), F32)
    ),
    "Col2Im": lambda: simple(
        node("Col2Im", ["x", "s", "b"], ["y"], strides=[2**20] * 2),
        x=(F32, [1, 1, 1]),
        s=np.array([2**20, 2**20]),
        b=np.array([1, 1]),
    ),
    "MaxUnpool": lambda: simple(
        node("MaxUnpool", ["x", "i", "s"], ["y"], kernel_shape=[1, 1]),
        x=(F32, [1, 1, 1, 1]),
        i=np.zeros((1, 1, 1, 1), I64),
        s=np.array([1, 1, 2**20, 2**20]),
    ),
    "AffineGrid": lambda: simple(
        node("AffineGrid", ["x", "s"], ["y"]), x=(F32, [1, 2, 3]), s=np.array([1, 1, 2**20, 2**20])
    ),
    "RoiAlign": lambda: simple(
        node("RoiAlign", ["x", "r", "b"], ["y"], output_height=2**20, output_width=2**20),
        x=(F32, [1, 1, 2, 2]),
        r=np.array([[0, 0, 1, 1]], F32),
        b=np.array([0]),
    ),
    "Einsum": lambda: simple(node("Einsum", ["x", "x"], ["y"], equation="i,j->ij"), x=(F32, [2**18])),
    "TfIdfVectorizer": lambda: simple(
        node(
            "TfIdfVectorizer", ["x"], ["y"], mode="TF", min_gram_length=1, max_gram_length=1, max_skip_count=0,
            ngram_counts=[0], ngram_indexes=[2**40], pool_int64s=[1],
        ),
        x=(I64, [2]),
    ),
    "GatherND": lambda: simple(
        node("GatherND", ["x", "i"], ["y"]), x=(F32, [1, 2**16]), i=np.zeros((2**20, 1), I64)
    ),
    "Concat in a Loop": lambda: loop(node("Concat", ["v", "v"], ["w"], axis=0)),
    "Add in a Loop that broadcasts": lambda: loop(
        node("Unsqueeze", ["v", "m"], ["u"]), node("Mul", ["v", "u"], ["p"]), node("Reshape", ["p", "m"], ["w"])
    ),
    "StringConcat in a Loop": lambda: loop(node("StringConcat", ["v", "v"], ["w"]), kind=TensorProto.STRING),
    "scan outputs of a Loop": lambda: loop(node("Identity", ["v"], ["w"]), scan=True),
    "scan outputs of nothing": lambda: loop(node("Identity", ["v"], ["w"]), scan=True, x=0),
    "a sequence that grows": lambda: sequence_loop(2**62),
}  # fmt: skip


def loop(*body: onnx.NodeProto, kind: int = 1, scan: bool = False, trips: int = 2**62, x: int = 4) -> ModelProto:
    """w of one trip is v of the next."""
    info = helper.make_tensor_value_info
    outs = [info("going", 9, []), onnx.ValueInfoProto(name="w"), *([onnx.ValueInfoProto(name="w")] if scan else [])]
    inner = helper.make_graph(
        [node("Identity", ["g"], ["going"]), node("Constant", [], ["m"], value_ints=[-1]), *body],
        "body",
        [info("i", 7, []), info("g", 9, []), onnx.ValueInfoProto(name="v")],
        outs,
    )
    made = node("Loop", ["trips", "", "x"], ["last", "y"] if scan else ["y"], body=inner)
    return simple(made, x=(F32 if kind == 1 else kind, [x]), y=(kind, None), trips=np.array(trips))


def sequence_loop(trips: int) -> ModelProto:
    info = helper.make_tensor_value_info
    inner = helper.make_graph(
        [node("Identity", ["g"], ["going"]), node("SequenceInsert", ["v", "x"], ["w"])],
        "body",
        [info("i", 7, []), info("g", 9, []), onnx.ValueInfoProto(name="v")],
        [info("going", 9, []), onnx.ValueInfoProto(name="w")],
    )
    return simple(
        node("SequenceConstruct", ["x"], ["s"]),
        node("Loop", ["trips", "", "s"], ["t"], body=inner),
        node("SequenceLength", ["t"], ["y"]),
        x=(F32, [2**16]),
        y=(I64, None),
        trips=np.array(trips),
    )


def ones(session: hashinfer.InferenceSession) -> dict[str, Any]:
    feed: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else 3 for d in value.shape]
        kind = {"tensor(float)": F32, "tensor(int64)": I64, "tensor(string)": object}[value.type]
        feed[value.name] = np.full(shape, "abcd" if kind is object else 1, kind)
    return feed


@pytest.mark.parametrize("case", GROWING)
def test_what_would_grow_too_large_is_refused_first(case):
    session = load(GROWING[case](), max_memory=16 * MIB)
    with fuzz.confined(ROOM), pytest.raises(MemoryLimitError, match=r"node '.*bytes"):
        session.run(None, ones(session))


@pytest.mark.parametrize("dynamic", [False, True])
def test_values_together_are_held_within_the_limit(dynamic):
    """Each of them would be allowed; all of them at once are not, unless they go in time."""

    def chain(kept: bool) -> ModelProto:
        first = [node("NonZero", ["x"], ["z"]), node("Cast", ["z"], ["f"], to=1)] if dynamic else []
        first += [node("Identity" if dynamic else "Neg", ["f" if dynamic else "x"], ["v0"])]
        links = [node("Neg", [f"v{k}"], [f"v{k + 1}"]) for k in range(20)]
        last = [f"v{k}" for k in range(21)] if kept else ["v20"]
        return simple(*first, *links, node("Concat", last, ["y"], axis=-1), x=(F32, [1, "N"]))

    x = np.ones((1, MIB // 4), F32)
    size = 12 * MIB if dynamic else 6 * MIB
    assert load(chain(kept=False), max_memory=size).run(None, {"x": x})[0].size == (2 if dynamic else 1) * x.size
    with pytest.raises(MemoryLimitError):
        load(chain(kept=True), max_memory=size).run(None, {"x": x})


def test_tables_of_weights_inside_subgraphs_count_too():
    """A layer of 2^31 - 1 outputs on a batch of none: nothing but its tables would take memory."""
    inner = helper.make_graph(
        [expand_node(Dyadic(1, 1, 2**31 - 1, 3, 1), "w", "W"), node("MatMul", ["x", "W"], ["t"])],
        "g",
        [],
        [onnx.ValueInfoProto(name="t")],
        [numpy_helper.from_array(np.ones(1, F32), "w")],
    )
    made = node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    model = simple(made, x=(F32, [0, 1]), c=np.array(True))
    with fuzz.confined(ROOM), pytest.raises(MemoryLimitError, match="weights take"):
        load(model, max_memory=16 * MIB)


def test_files_larger_than_the_limit_are_not_read(tmp_path):
    path = tmp_path / "large.onnx"
    with path.open("wb") as file:
        file.truncate(2**31 - 1)
    with fuzz.confined(ROOM), pytest.raises(MemoryLimitError, match="has 2147483647 bytes; at most"):
        hashinfer.InferenceSession(path, max_memory=16 * MIB)


def test_external_data_larger_than_the_limit_is_not_read(tmp_path):
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(2**40)
    model = simple(node("Add", ["x", "w"], ["y"]), w=np.zeros(4, F32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [2**38]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with fuzz.confined(ROOM), pytest.raises(MemoryLimitError, match=r"'w' takes 1099511627776 bytes of 'w\.bin'"):
        hashinfer.InferenceSession(tmp_path / "m.onnx", max_memory=16 * MIB)


# ----------------------------------------------------------------------------------------------------------------- time

ENDLESS: dict[str, Callable[[], ModelProto]] = {
    "a Loop of 2^63 - 1 trips": lambda: loop(node("Neg", ["v"], ["w"]), trips=2**63 - 1),
    "a Loop of no steps": lambda: empty_loop(2**63 - 1),
    "an op whose reference implementation takes for ever": lambda: simple(
        node("Cast", ["x"], ["i"], to=7),
        node(
            "TfIdfVectorizer",
            ["i"],
            ["y"],
            mode="TF",
            min_gram_length=2,
            max_gram_length=2,
            max_skip_count=2**31,
            ngram_counts=[0, 0],
            ngram_indexes=[0],
            pool_int64s=[1, 1],
        ),
        x=(F32, [4]),
    ),
    "Loops in Loops": lambda: loop(
        node("Loop", ["trips", "", "v"], ["w"], body=empty_loop(1).graph.node[-1].attribute[0].g), trips=2**63 - 1
    ),
}


def empty_loop(trips: int) -> ModelProto:
    info = helper.make_tensor_value_info
    inner = helper.make_graph(
        [], "body", [info("i2", 7, []), info("g2", 9, []), onnx.ValueInfoProto(name="v2")],
        [info("g2", 9, []), onnx.ValueInfoProto(name="v2")],
    )  # fmt: skip
    return simple(node("Loop", ["trips", "", "x"], ["y"], body=inner), x=(F32, [4]), trips=np.array(trips))


LONG_AND_EMPTY: dict[str, tuple[list[str], dict[str, Any], dict[str, int], tuple[int, ...]]] = {
    "ReduceL2": ([], {}, {}, (1, 1, 1)),
    "MatMul": (["w"], {"w": np.ones((4, 3), F32)}, {}, (2**40, 0, 3)),
    "TopK": (["k"], {"k": np.array([0])}, {"axis": 1}, (2**40, 0, 4)),
}
"""Further inputs, their values, attributes, and the output's shape."""


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("op_type", LONG_AND_EMPTY)
def test_long_tensors_without_elements_take_no_time(op_type, constant):
    others, values, attrs, shape = LONG_AND_EMPTY[op_type]
    empty = np.empty((2**40, 0, 4), F32)
    made = node(op_type, ["c" if constant else "x", *others], ["y", ""][: 2 if op_type == "TopK" else 1], **attrs)
    start = time.perf_counter()
    if constant:
        session, x = load(simple(made, x=(F32, [1]), c=empty, **values)), np.ones(1, F32)
    else:
        session, x = load(simple(made, x=(F32, ["N", "M", 4]), **values)), empty
    (y,) = session.run(None, {"x": x})
    assert y.shape == shape
    assert not y.any()
    assert time.perf_counter() - start < HANGS


@pytest.mark.parametrize("case", ENDLESS)
def test_a_time_limit_ends_a_run_without_end(case):
    session = load(ENDLESS[case](), time_limit=0.1)
    start = time.perf_counter()
    with pytest.raises(TimeLimitError, match=r"node '.*time limit of 0\.1 s is over"):
        session.run(None, {"x": np.ones(4, F32)})
    with pytest.raises(TimeoutError):
        session.run(None, {"x": np.ones(4, F32)}, time_limit=0.05)
    assert time.perf_counter() - start < HANGS


@pytest.mark.parametrize("kind", ["native", "dynamic", "sequence"])
def test_a_time_limit_that_is_over_stops_any_run_and_leaves_the_session_usable(kind):
    x: Any = nets.weights(9).reshape(1, 9)
    if kind == "native":
        model = nets.hashed_mlp([9, 8, 7], "dyadic", 2)
    elif kind == "dynamic":
        model = simple(node("NonZero", ["x"], ["y"]), x=(F32, ["N", 9]), y=(I64, None))
    else:
        model = simple(node("SequenceLength", ["x"], ["y"]), y=(I64, None))
        model.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None)))
        x = [x, x]
    session = load(model)
    expected = session.run(None, {"x": x})[0]
    for _ in range(2):
        with pytest.raises(TimeLimitError, match=r"node '.*time limit of 1e-09 s is over"):
            session.run(None, {"x": x}, time_limit=1e-9)
        assert np.array_equal(session.run(None, {"x": x})[0], expected)
        assert np.array_equal(session.run(None, {"x": x}, time_limit=HANGS)[0], expected)


def test_time_limits_that_make_no_sense():
    data = nets.hashed_mlp([9, 8, 7], "dyadic", 2).SerializeToString()
    for wrong in (0, -1, float("nan"), "1", True):
        with pytest.raises(InputError, match=r"time_limit is .*; expected a number of seconds above 0"):
            hashinfer.InferenceSession(data, time_limit=wrong)  # type: ignore[arg-type]
    session = hashinfer.InferenceSession(data)
    with pytest.raises(InputError, match="time_limit is 0; expected"):
        session.run(None, {"x": np.ones((1, 9), F32)}, time_limit=0)


def test_time_that_ends_while_work_ends():
    """However the two meet, the limit's exception arrives in the work or nowhere."""
    rng = np.random.default_rng(0)
    seen = {"in time": 0, "over": 0, "failed": 0}
    for k in range(60):
        until = time.perf_counter() + float(rng.uniform(0, 0.03))

        def work(until: float = until, fails: bool = k % 3 == 0) -> str:
            while time.perf_counter() < until:
                pass
            if fails:
                raise ValueError
            return "in time"

        try:
            seen[in_time(Limits.starting(1, 0.01), "Op", "node", work)] += 1
        except TimeLimitError:
            seen["over"] += 1
        except ValueError:
            seen["failed"] += 1
    assert sum(seen.values()) == 60


@pytest.mark.parametrize("seconds", [1e15, float("inf")])
def test_endless_time_limits(seconds):
    assert in_time(Limits.starting(1, seconds), "Op", "node", lambda: 3) == 3


def test_the_end_of_the_time_meets_no_other_thread():
    """Not even one that has just been started, which CPython 3.11 takes for its parent until it runs."""
    lost: list[Any] = []
    before, sys.unraisablehook = sys.unraisablehook, lost.append
    try:
        for k in range(3000):
            with suppress(TimeLimitError):
                in_time(Limits.starting(1, 1e-5), "Op", "node", lambda k=k: sum(range(k)))
    finally:
        sys.unraisablehook = before
    assert not lost


TRACED = """
import sys
from hashinfer.errors import TimeLimitError
from hashinfer.plan.limits import Limits, in_time

def trace(frame, event, arg):
    return trace

def work():
    while True:
        pass

sys.settrace(trace)
for _ in range(5):
    try:
        in_time(Limits.starting(1, 0.02), "Op", "node", work)
    except TimeLimitError:
        print("over")
"""


def test_a_time_limit_holds_under_a_debugger():
    """In a process of its own, as it may hang: CPython 3.11 looks for an exception that was taken back for ever."""
    command = [sys.executable, "-c", TRACED]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANGS, env=unmeasured())
    assert done.stdout == "over\n" * 5


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_finalizer_does_not_swallow_the_end_of_the_time():
    """An exception that is raised in one is printed and lost."""
    told = []

    class Slow:
        def __del__(self) -> None:
            try:
                while True:
                    pass
            finally:
                told.append("in the finalizer")

    def work() -> None:
        slow = Slow()
        del slow
        while True:
            pass

    # Where the machine is busy, the time may be over before the finalizer begins.
    for seconds in (0.01, 0.1, 1.0, 5.0):
        with pytest.raises(TimeLimitError):
            in_time(Limits.starting(1, seconds), "Op", "node", work)
        if told:
            break
    assert told[:1] == ["in the finalizer"]


def test_nodes_that_name_outputs_which_nothing_makes():
    empty = onnx.ValueInfoProto(name="t")
    branch = helper.make_graph([node("Identity", ["x"], ["t"])], "g", [], [empty])
    model = simple(
        node("If", ["c"], ["y", "z"], then_branch=branch, else_branch=branch),
        node("Neg", ["z"], ["n"]),
        c=np.array(True),
    )
    with pytest.raises(OpError, match="If node 'If_y': it names 2 outputs; the op makes 1"):
        load(model).run(None, {"x": np.ones(2, F32)})


# -------------------------------------------------------------------------------------------------------------- fuzzing


def test_the_corpus_runs_as_it_should():
    """What fuzzing once found, and never again."""
    files = sorted(fuzz.CORPUS.glob("*.onnx"))
    assert files
    assert sum(path.stat().st_size for path in files) < MIB
    with fuzz.confined(ROOM):
        for path in files:
            outcome(path.read_bytes())


def test_a_short_fuzzing_by_chance(tmp_path):
    """The same inputs every time; `python -m tests.fuzz` goes on from there."""
    pool = [data for name, data in fuzz.seeds() if len(data) < 4000][::9]
    rng = random.Random(5)  # noqa: S311
    fuzzer = fuzz.Fuzzer(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(600):
            fuzzer.one(fuzz.mutate(rng.choice(pool), rng, rng.choice(pool)))
    fuzzer.note()
    findings = [path.read_text() for path in tmp_path.glob("finding-*.txt")]
    assert not findings, findings[0]
    assert fuzzer.outcomes["answer"] > 20
    assert fuzzer.outcomes["ModelError"] > 20
    assert sum(fuzzer.outcomes.values()) == 600 == json.loads(next(tmp_path.glob("state-*")).read_text())["runs"]


def test_errors_keep_their_types():
    assert issubclass(TimeLimitError, HashinferError)
    assert issubclass(TimeLimitError, TimeoutError)
    assert issubclass(OpError, HashinferError)
    assert Xxh32(20, 9, 8, 3, 2).name == "xxh32"


SEVERAL = {
    "TopK": (("x", "k"), (F32, I64), {}),
    "DynamicQuantizeLinear": (("x",), (np.uint8, np.float32, np.uint8), {}),
    "Split": (("x",), (np.float32, np.float32), {"axis": 1, "num_outputs": 2}),
    "Unique": (("x",), (np.float32, np.int64, np.int64, np.int64), {}),
    "Dropout": (("x",), (np.float32, np.bool_), {}),
    "LSTM": (("s", "w", "r"), (np.float32, np.float32, np.float32), {"hidden_size": 2}),
    "GRU": (("s", "gw", "gr"), (np.float32, np.float32), {"hidden_size": 2}),
    "LayerNormalization": (("x", "scale"), (np.float32, np.float32, np.float32), {}),
    "MaxPool": (("image",), (np.float32, np.int64), {"kernel_shape": [2, 2]}),
}


@pytest.mark.parametrize("op", SEVERAL)
def test_outputs_that_nobody_names_are_not_written(op):
    names, dtypes, attributes = SEVERAL[op]
    feed = {"x": nets.weights(20).reshape(5, 4), "s": nets.weights(24).reshape(3, 2, 4)}
    feed["image"] = nets.weights(32).reshape(1, 2, 4, 4)
    constants = {"k": np.array([2]), "scale": nets.weights(4)}
    constants |= {"w": nets.weights(32).reshape(1, 8, 4), "r": nets.weights(16).reshape(1, 8, 2)}
    constants |= {"gw": nets.weights(24).reshape(1, 6, 4), "gr": nets.weights(12).reshape(1, 6, 2)}
    given = {n: feed[n] for n in names if n in feed}

    def run(wanted):
        outputs = [f"y{k}" if k in wanted else "" for k in range(len(dtypes))]
        model = nets.model(
            [nets.node(op, names, outputs, **attributes)],
            {n: (np.float32, list(v.shape)) for n, v in given.items()},
            {f"y{k}": (dtypes[k], None) for k in wanted},
            {n: constants[n] for n in names if n in constants},
        )
        with hashinfer.InferenceSession(model.SerializeToString()) as session:
            return [session.run(None, given), session.run(None, given)]

    whole = run(range(len(dtypes)))[0]
    for size in range(1, len(dtypes)):
        for wanted in itertools.combinations(range(len(dtypes)), size):
            for found in run(wanted):
                for k, y in zip(wanted, found, strict=True):
                    np.testing.assert_allclose(y, whole[k], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["choose", "a", "node", "s"])
def test_an_error_names_its_node_once_whatever_the_name(name):
    branches = {}
    for kind, op in (("then_branch", "Identity"), ("else_branch", "Reshape")):
        ins = ["x"] if op == "Identity" else ["x", "shape"]
        inner = [node(op, ins, [f"{kind}_y"], name="inner")]
        branches[kind] = helper.make_graph(inner, kind, [], [helper.make_tensor_value_info(f"{kind}_y", 1, None)])
    model = nets.model(
        [node("If", ["c"], ["y"], name=name, **branches)],
        {"x": (F32, [2]), "c": (np.bool_, None), "shape": (I64, [1])},
        {"y": (F32, None)},
        {},
    )
    feed = {"x": np.zeros(2, F32), "shape": np.array([5])}
    with hashinfer.InferenceSession(model.SerializeToString()) as session:
        with pytest.raises(OpError, match=f"^If node '{name}': its condition"):
            session.run(None, feed | {"c": np.array([True, False])})
        with pytest.raises(OpError, match=rf"^Reshape node '{name}#\d+/inner': ") as caught:
            session.run(None, feed | {"c": np.array(False)})
    assert str(caught.value).count("node '") == 1


def test_room_for_what_nobody_names_is_counted():
    def total(name):
        split = node("Split", ["x"], ["a", name], num_outputs=2)
        model = nets.model([split, node("Neg", ["a"], ["y"])], {"x": (F32, [2**16])}, {"y": (F32, [2**15])}, {})
        with hashinfer.InferenceSession(model.SerializeToString()) as session:
            return session.report()["memory"]["total"]

    assert total("") == total("b")
