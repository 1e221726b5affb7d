"""Native ops against onnx's own node tests, onnxruntime and onnx's reference; and what they refuse."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Sequence
from typing import Any

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_state

import hashinfer
from hashinfer.errors import OpError, UnsupportedError
from hashinfer.ops import convolution, pool, registry
from hashinfer.ops.base import REGISTRY, Array, Call, Operand, TensorType, is_native
from hashinfer.ops.reference import ReferenceOp
from tests import naive, nets

TESTED = {f"hashinfer.ops.{name}" for name in set(registry.__all__) - {"REGISTRY", "product", "recurrent"}}
"""Modules of ops whose tests are here."""
NATIVE = {op_type for op_type, op in REGISTRY.items() if type(op).__module__ in TESTED}


def infer(op_type: str, call: Call, ins: Sequence[Array | None]) -> Sequence[TensorType]:
    """Types of the outputs with every value known; without values they are the same or not yet known."""
    op = REGISTRY[op_type]
    known = [None if x is None else Operand.of(x) for x in ins]
    types = op.infer(call, known)
    assert types is not None
    early = op.infer(call, [None if x is None else Operand(x.type) for x in known])
    assert early is None or list(early) == list(types)
    return types


def run_native(op_type: str, call: Call, ins: Sequence[Array | None]) -> list[Array]:
    """Outputs of the native op, the same for inputs in another memory order and for read-only ones."""
    op = REGISTRY[op_type]
    types = infer(op_type, call, ins)
    results = []
    for layout in ("C", "F"):
        placed = [None if x is None else np.array(x, order=layout) for x in ins]
        for x in placed:
            if x is not None:
                x.flags.writeable = False
        outs = [np.full(t.shape, 77).astype(t.dtype) for t in types]
        op.run(call, placed, outs)
        results.append(outs)
    for a, b in zip(*results, strict=True):
        close(a, b)
    if op.aliases:
        assert ins[0] is not None
        np.testing.assert_array_equal(results[0][0].reshape(-1), ins[0].reshape(-1))
    if op.shape_only:
        outs = [np.empty(t.shape, t.dtype) for t in types]
        op.run(call, [None if x is None else np.broadcast_to(x.dtype.type(0), x.shape) for x in ins], outs)
        np.testing.assert_array_equal(outs[0], results[0][0])
    return results[0]


def run(op_type: str, call: Call, ins: Sequence[Any], domain: str = "") -> list[Any]:
    """Outputs as the engine would get them: natively where it can."""
    if op_type in NATIVE and not domain and all(x is None or isinstance(x, np.ndarray) for x in ins):
        known = [None if x is None else Operand.of(x) for x in ins]
        if is_native(REGISTRY[op_type], call, known):
            return list(run_native(op_type, call, ins))
    return ReferenceOp(op_type, domain, call.opset).evaluate(call, ins)


def as_array(value: Any) -> Any:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def close(found: Any, expected: Any, rtol: float = 2e-6) -> None:
    if isinstance(expected, (list, tuple)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            close(a, b, rtol)
        return
    if expected is None or isinstance(expected, dict):
        assert found == expected
        return
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    if expected.dtype.kind in "USO":
        assert found.tolist() == expected.tolist()
        return
    assert found.dtype == expected.dtype
    if expected.dtype.kind in "fcV" and expected.dtype.itemsize < 4:
        wide = np.float32
        rtol = {2: 2e-3}.get(expected.dtype.itemsize, 0.13) if expected.dtype.kind == "f" else 0.13
        found, expected = found.astype(wide), expected.astype(wide)
    if expected.dtype.kind in "fc":
        scale = np.max(np.abs(expected), initial=0, where=np.isfinite(expected))
        np.testing.assert_allclose(found, expected, rtol=5 * rtol, atol=rtol * scale)
    else:
        np.testing.assert_array_equal(found, expected)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {k: numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v for k, v in values.items()}


def backend_cases() -> list[Any]:
    """onnx's node tests of one node each. Making them takes some seconds; they are made once per session."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.case.node import collect_testcases

        cases = collect_testcases()
    single = [(case, *case.model.graph.node) for case in cases if len(case.model.graph.node) == 1]
    return [
        pytest.param(case, id=case.name)
        for case, node in single
        if node.op_type not in EXCLUDED and not node.domain.startswith("ai.onnx.preview")
    ]


EXCLUDED = {
    "ai.onnx.preview": "not a standard domain",
    "Bernoulli": "random",
    "ImageDecoder": "needs Pillow",
    "If": "has subgraphs, which are not the ops' business",
    "Scan": "has subgraphs, which are not the ops' business",
}
"""Op types, or beginnings of domains, by the reason why they are left out."""


@pytest.mark.parametrize("case", backend_cases())
def test_onnx_node_case(case: Any) -> None:
    (node,) = case.model.graph.node
    opset = next(o.version for o in case.model.opset_import if o.domain == node.domain)
    for inputs, expected in case.data_sets:
        feed = dict(zip([i.name for i in case.model.graph.input], map(as_array, inputs), strict=True))
        ins = [feed[name] if name else None for name in node.input]
        call = Call(attributes(node), opset, len(node.output))
        found = run(node.op_type, call, ins, node.domain)
        wanted = [out for out, name in zip(found, node.output, strict=True) if name]
        rounded = node.op_type not in NATIVE or case.name == "test_averagepool_2d_ceil_last_window_starts_on_pad"
        close(wanted, list(map(as_array, expected)), 2e-4 if rounded else 1e-5)


def oracle(op_type: str, call: Call, ins: Sequence[Array | None]) -> list[Any]:
    """Outputs by onnxruntime, or by onnx's reference where onnxruntime does not have the op for these types."""
    names = [f"i{at}" if x is not None else "" for at, x in enumerate(ins)]
    attrs = {k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for k, v in call.attrs.items()}
    node = helper.make_node(op_type, names, [f"o{at}" for at in range(call.outputs)], **attrs)
    feed = {name: x for name, x in zip(names, ins, strict=True) if x is not None}
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feed.items()],
        [onnx.ValueInfoProto(name=name) for name in node.output],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", call.opset)])
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except (ort_state.NotImplemented, ort_state.Fail, ort_state.InvalidGraph):
        return ReferenceOp(op_type, "", call.opset).evaluate(call, ins)
    return list(session.run(None, feed))


def check(op_type: str, ins: Sequence[Array | None], opset: int, attrs: dict[str, Any], outputs: int = 1) -> None:
    call = Call(attrs, opset, outputs)
    assert is_native(REGISTRY[op_type], call, [None if x is None else Operand.of(x) for x in ins])
    close(run_native(op_type, call, ins), oracle(op_type, call, ins))


def floats(*shape: int, dtype: str = "f4", scale: float = 3.0) -> Array:
    rng = np.random.default_rng(sum(shape) + len(shape))
    return (rng.standard_normal(shape) * scale).astype(dtype)


def u8(*shape: int) -> Array:
    return ints(*shape, dtype="u1", low=0, high=256)


def ints(*shape: int, dtype: str = "i8", low: int = -9, high: int = 10) -> Array:
    rng = np.random.default_rng(sum(shape) + len(shape))
    return rng.integers(low, high, shape).astype(dtype)


def i64(*values: int) -> Array:
    return np.array(values, np.int64)


UNARY_FLOAT = [
    *(
        [
            "Abs",
            "Ceil",
            "Cos",
            "Erf",
            "Exp",
            "Floor",
            "Log",
            "Neg",
            "Reciprocal",
            "Round",
            "Sign",
            "Sin",
            "Sqrt",
            "Tanh",
            "Relu",
            "Sigmoid",
            "Softplus",
            "Softsign",
        ]
    ),
    *(
        [
            "Elu",
            "Selu",
            "Celu",
            "LeakyRelu",
            "HardSigmoid",
            "HardSwish",
            "Mish",
            "ThresholdedRelu",
            "IsNaN",
            "IsInf",
            "Tan",
            "Atan",
            "Sinh",
            "Cosh",
            "Asinh",
        ]
    ),
]


@pytest.mark.parametrize("dtype", ["f4", "f2", "f8"])
@pytest.mark.parametrize("op_type", [*UNARY_FLOAT, "Gelu", "Swish"])
def test_unary(op_type: str, dtype: str) -> None:
    opset = {"Gelu": 20, "Swish": 24}.get(op_type, 18)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-6, -1e-6, 60.0, -60.0, 0.5, 1.5, 2.5, -0.5]
    finite = op_type in {"Swish", "Gelu", "Softsign", "Mish", "HardSwish", "Tan", "Sinh", "Cosh"}
    x = np.concatenate([floats(20011, dtype=dtype), np.array(special if not finite else [0.0, 0.5, -0.5], dtype)])
    if op_type == "Sign":
        x = x[~np.isnan(x)]
    if op_type in {"Log", "Sqrt"}:
        x = np.abs(x)
    call = Call({}, opset)
    close(run_native(op_type, call, [x]), oracle(op_type, call, [x]), {"f4": 1e-6, "f8": 1e-7, "f2": 0}[dtype])


@pytest.mark.parametrize(
    ("op_type", "attrs", "opset"),
    [
        ("Elu", {"alpha": 0.3}, 7),
        ("Selu", {"alpha": 2.0, "gamma": 3.0}, 7),
        ("Celu", {"alpha": 0.7}, 12),
        ("LeakyRelu", {"alpha": 0.2}, 7),
        ("HardSigmoid", {"alpha": 0.5, "beta": 0.1}, 7),
        ("ThresholdedRelu", {"alpha": 2.0}, 10),
        ("Gelu", {"approximate": "tanh"}, 20),
        ("Gelu", {"approximate": b"tanh"}, 20),
        ("IsInf", {"detect_negative": 0}, 20),
        ("IsInf", {"detect_positive": 0}, 10),
        ("Swish", {"alpha": 0.5}, 24),
    ],
)
def test_unary_attributes(op_type: str, attrs: dict[str, Any], opset: int) -> None:
    x = floats(3, 40)
    if op_type == "IsInf":
        x[0, :3] = np.inf, -np.inf, np.nan
    check(op_type, [x], opset, attrs)


def test_erf_is_close_in_ulps() -> None:
    for dtype, limit in ((np.float32, 1.0), (np.float64, 1.0)):
        x = np.concatenate([np.linspace(-7, 7, 20001), np.geomspace(1e-30, 1, 2001)]).astype(dtype)
        exact = np.array([math.erf(v) for v in x.tolist()])
        (found,) = run_native("Erf", Call({}, 13), [x])
        ulps = np.abs(found.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(dtype)).astype(np.float64)
        assert ulps.max() <= limit
        (ends,) = run_native("Erf", Call({}, 13), [np.array([np.inf, -np.inf, 50], dtype)])
        assert ends.tolist() == [1, -1, 1]


BINARY = {
    "Add Sub Mul Div": "f4 f8 f2 i4 i8 u1 i1",
    "Less LessOrEqual Greater GreaterOrEqual Equal": "f4 f8 i4 i8",
    "And Or Xor": "?",
    "BitwiseAnd BitwiseOr BitwiseXor": "u1 i4 i8",
    "Max Min": "f4 f8 f2 i4 u8",
    "Sum Mean": "f4",
    "Pow": "f4 f8 i4 i8",
    "Mod": "i4 i8 u1 i1",
}
"""Op types, and the dtypes to try them with."""


@pytest.mark.parametrize(
    ("op_type", "dtype"),
    [(op, dtype) for ops, dtypes in BINARY.items() for op in ops.split() for dtype in dtypes.split()],
)
def test_binary(op_type: str, dtype: str) -> None:
    is_float = dtype[0] == "f"
    a = floats(4, 1, 5, dtype=dtype) if is_float else ints(4, 1, 5, dtype=dtype)
    b = floats(3, 1, dtype=dtype, scale=2) if is_float else ints(3, 1, dtype=dtype, low=1, high=4)
    if op_type == "Pow":
        a = np.abs(a)
    if op_type in {"Div", "Mod"} and dtype[0] == "i":
        b[0] = -3
    check(op_type, [a, b], 18, {})


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (floats(3, 4), np.float32([2])),
        (floats(3, 4), np.float32(3)),
        (np.abs(floats(3, 4)), np.float32(0.5)),
        (floats(3, 4), i64(2)),
        (floats(3, 4), ints(4, low=-3, high=4)),
        (ints(3, 4, dtype="i4"), ints(4, low=0, high=4)),
        (ints(3, 4, dtype="i4", low=0), np.float32([0.5, 1.5, 2, 0])),
        (np.float64([2, 3]), np.float32([[0.5], [-1]])),
    ],
)
def test_pow_of_two_dtypes(x: Array, y: Array) -> None:
    check("Pow", [x, np.asarray(y)], 15, {})


def test_integer_corners() -> None:
    low = np.iinfo(np.int32).min
    call = Call({}, 14)
    assert run_native("Div", call, [np.int32([low, -7, 7, -7]), np.int32([-1, 2, -2, -2])])[0].tolist() == [
        low,
        -3,
        -3,
        3,
    ]
    assert run_native("Mod", call, [np.int32([low, -7]), np.int32([-1, 2])])[0].tolist() == [0, 1]
    assert run_native("Mod", Call({"fmod": 1}, 14), [np.int32([low, -7]), np.int32([-1, 2])])[0].tolist() == [0, -1]
    assert run_native("Pow", Call({}, 15), [np.int32([2, -1, 1]), np.int32([-1, -1, -2])])[0].tolist() == [0, -1, 1]
    for op_type in ("Div", "Mod"):
        with pytest.raises(OpError, match="zero"):
            run_native(op_type, call, [ints(3), i64(1, 0, 2)])


SHAPES = hnp.mutually_broadcastable_shapes(num_shapes=3, max_dims=4, max_side=4, min_side=0)


@pytest.mark.parametrize(
    ("a", "b", "tiles"),
    [
        ([0], [], 0),
        ([1], [], 1),
        ([16384], [16384], 1),
        ([16385], [1], 2),
        ([100_003], [], 7),
        ([64, 784], [1], 4),
        ([3, 40_000], [40_000], 9),
        ([2, 1, 20_000], [2, 3, 1], 12),
        ([5, 1], [1, 16_400], 10),
        ([5, 300], [300], 1),
    ],
)
def test_a_long_axis_is_cut_into_tiles(a: list[int], b: list[int], tiles: int) -> None:
    feed, op, call = {"a": floats(*a), "b": floats(*b)}, REGISTRY["Sub"], Call({}, 14)
    known = [Operand.of(x) for x in feed.values()]
    assert [c.tiles for c in op.emit(call, known, op.infer(call, known)).calls] == [tiles]
    for names in (["a", "b"], ["b", "a"]):
        kinds = {name: (np.float32, feed[name].shape) for name in names}
        net = nets.model([nets.node("Sub", names, ["y"])], kinds, {"y": (np.float32, None)}, {})
        (y,) = hashinfer.InferenceSession(net.SerializeToString(), threads=2).run(None, feed)
        np.testing.assert_array_equal(y, feed[names[0]] - feed[names[1]])


@given(SHAPES)
def test_broadcasting(shapes: Any) -> None:
    a, b, c = (floats(*shape) for shape in shapes.input_shapes)
    np.testing.assert_array_equal(run_native("Add", Call({}, 14), [a, b])[0], a + b)
    np.testing.assert_array_equal(run_native("Where", Call({}, 16), [a > 0, b, c])[0], np.where(a > 0, b, c))
    np.testing.assert_array_equal(run_native("Max", Call({}, 13), [a, b, c])[0], np.maximum(np.maximum(a, b), c))
    with np.errstate(all="ignore"):
        i, j = ints(*a.shape), ints(*b.shape, low=1)
        np.testing.assert_array_equal(run_native("Div", Call({}, 14), [i, j])[0], np.trunc(i / j))


X = floats(2, 3, 4, 5)
F16 = X.astype(np.float16)
IMAGE = floats(1, 3, 5, 6)
SQUARE = floats(6, 6)
ONES = floats(1, 3, 1, 4)
K = np.int64(1)

CASES: list[tuple[str, list[Array | None], int, dict[str, Any]]] = [
    # clip
    ("Clip", [X], 7, {"min": -1.0, "max": 1.0}),
    ("Clip", [X], 10, {"max": 1.0}),
    ("Clip", [X], 10, {}),
    ("Clip", [X, None, np.float32(1)], 11, {}),
    ("Clip", [X, np.float32(0)], 12, {}),
    ("Clip", [X, np.float32(2), np.float32(1)], 13, {}),
    ("Clip", [ints(9), np.int64(-3), np.int64(4)], 13, {}),
    ("Clip", [ints(9, dtype="u1"), np.uint8(30), None], 13, {}),
    ("PRelu", [X, floats(3, 1, 1)], 9, {}),
    ("PRelu", [X, floats(1)], 16, {}),
    # shapes
    ("Reshape", [X, i64(0, -1, 5)], 7, {}),
    ("Reshape", [X, i64(6, 20)], 14, {"allowzero": 1}),
    ("Reshape", [floats(0, 3), i64(3, 0)], 14, {"allowzero": 1}),
    ("Reshape", [floats(1), np.zeros(0, np.int64)], 14, {}),
    ("Flatten", [X], 9, {"axis": 0}),
    ("Flatten", [X], 13, {"axis": -1}),
    ("Flatten", [X], 13, {"axis": 4}),
    ("Squeeze", [ONES], 7, {"axes": [0]}),
    ("Squeeze", [ONES], 11, {"axes": [-2]}),
    ("Squeeze", [ONES], 11, {}),
    ("Squeeze", [ONES, i64(0, 2)], 13, {}),
    ("Squeeze", [ONES], 13, {}),
    ("Unsqueeze", [SQUARE], 7, {"axes": [0, 3]}),
    ("Unsqueeze", [SQUARE], 11, {"axes": [-1]}),
    ("Unsqueeze", [SQUARE, i64(-1, 0)], 13, {}),
    ("Dropout", [X], 7, {"ratio": 0.3}),
    ("Dropout", [X], 10, {}),
    ("Dropout", [X, np.float32(0.5), np.bool_(False)], 13, {}),
    ("Identity", [X], 14, {}),
    ("Shape", [X], 13, {}),
    ("Shape", [X], 15, {"start": 1, "end": -1}),
    ("Shape", [X], 19, {"start": -9, "end": 9}),
    ("Shape", [X], 19, {"start": 3, "end": 1}),
    ("Size", [X], 13, {}),
    ("Transpose", [X], 13, {}),
    ("Transpose", [X], 7, {"perm": [0, 2, 3, 1]}),
    ("Expand", [ONES, i64(2, 1, 5, 1)], 13, {}),
    ("Expand", [ONES, i64(4)], 8, {}),
    ("Tile", [SQUARE, i64(2, 3)], 13, {}),
    ("Tile", [SQUARE, i64(2, 0)], 13, {}),
    ("Concat", [X, X[:, :1], X[:, :0]], 13, {"axis": 1}),
    ("Concat", [X], 11, {"axis": -1}),
    ("DepthToSpace", [floats(2, 12, 2, 3)], 7, {"blocksize": 2}),
    ("DepthToSpace", [floats(2, 12, 2, 3)], 13, {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [floats(2, 3, 4, 6)], 13, {"blocksize": 2}),
    # creation
    ("ConstantOfShape", [i64(2, 3)], 9, {}),
    ("ConstantOfShape", [i64(0, 2)], 20, {"value": np.array([7], np.int32)}),
    ("ConstantOfShape", [np.zeros(0, np.int64)], 20, {"value": np.array([True])}),
    ("Range", [np.int64(3), np.int64(10), np.int64(3)], 11, {}),
    ("Range", [np.int32(3), np.int32(-10), np.int32(-4)], 11, {}),
    ("Range", [np.int64(3), np.int64(3), np.int64(1)], 11, {}),
    ("Range", [np.float32(0.5), np.float32(3), np.float32(0.25)], 11, {}),
    ("Range", [np.int64(0), np.int64(20000), np.int64(1)], 11, {}),
    # slices
    ("Slice", [X], 9, {"starts": [1, -3], "ends": [100, -1], "axes": [1, 3]}),
    ("Slice", [X], 7, {"starts": [1], "ends": [2]}),
    ("Slice", [X, i64(3, 9), i64(-(2**63), 0), i64(2, 3), i64(-1, -2)], 13, {}),
    ("Slice", [X, i64(-1), i64(-9), i64(-1), i64(-1)], 10, {}),
    ("Slice", [X, i64(2), i64(1)], 13, {}),
    ("Slice", [X, i64(0), i64(2**63 - 1), i64(1), i64(2)], 13, {}),
    # gathers
    ("Gather", [X, ints(2, 2, low=-3, high=3)], 13, {"axis": 1}),
    ("Gather", [X, np.int64(1)], 7, {}),
    ("Gather", [X, ints(3, dtype="i4", low=0, high=5)], 11, {"axis": -1}),
    ("Gather", [X, np.zeros((0, 2), np.int64)], 11, {"axis": 2}),
    ("GatherElements", [SQUARE, ints(2, 3, low=-6, high=6)], 13, {"axis": 0}),
    ("GatherElements", [SQUARE, ints(6, 9, low=-6, high=6)], 11, {"axis": -1}),
    ("GatherND", [X, ints(2, 2, low=-2, high=2)], 13, {}),
    ("GatherND", [X, ints(2, 4, 2, low=-3, high=3)], 12, {"batch_dims": 1}),
    ("GatherND", [X, ints(5, 4, low=0, high=2)], 11, {}),
    ("ScatterElements", [SQUARE, i64(1, 5, 2, 0).reshape(2, 2), floats(2, 2)], 13, {"axis": 1}),
    ("ScatterElements", [SQUARE, ints(4, 3, low=-6, high=6), floats(4, 3)], 18, {"reduction": "add"}),
    ("Scatter", [SQUARE, i64(1, 5, 2, 0).reshape(2, 2), floats(2, 2)], 9, {"axis": 1}),
    ("ScatterND", [SQUARE, i64(1, 3).reshape(2, 1), floats(2, 6)], 13, {}),
    ("ScatterND", [SQUARE, ints(9, 2, low=-6, high=6), floats(9)], 18, {"reduction": "max"}),
    ("OneHot", [ints(3, 2, low=-6, high=7), np.int64(4), np.float32([2, 5])], 11, {}),
    ("OneHot", [ints(3, 2, low=-4, high=4), i64(4), np.float32([0, 1])], 9, {"axis": 0}),
    ("OneHot", [np.int64(2), np.int64(4), i64(0, 1)], 11, {}),
    ("OneHot", [np.float32([1, 0, 3]), np.float32(4), np.float32([0, 1])], 11, {"axis": 1}),
    ("Trilu", [floats(2, 4, 6)], 14, {}),
    ("Trilu", [floats(2, 4, 6), np.int64(-2)], 14, {"upper": 0}),
    ("Trilu", [floats(2, 4, 6), np.int64(99)], 14, {}),
    # pads
    ("Pad", [SQUARE], 7, {"pads": [1, 0, 2, 3], "value": 1.5}),
    ("Pad", [SQUARE], 10, {"pads": [1, 2, 3, 4], "mode": "reflect"}),
    ("Pad", [SQUARE, i64(1, -2, 0, 3)], 11, {}),
    ("Pad", [SQUARE, i64(1, 2, 0, 3), np.float32(4)], 13, {"mode": "constant"}),
    ("Pad", [SQUARE, i64(1, 2, 0, 3)], 13, {"mode": "edge"}),
    ("Pad", [SQUARE, i64(2, 3), None, i64(-1)], 18, {"mode": "reflect"}),
    ("Pad", [SQUARE, i64(2, 3, 7, 1)], 19, {"mode": "wrap"}),
    ("Pad", [ints(4, dtype="i4"), i64(2, 1), np.int32(9)], 18, {}),
    # argmax and friends
    *[(op, [np.round(X)], opset, {"axis": axis, "keepdims": keep, **extra}) for op in ("ArgMax", "ArgMin")
      for opset, axis, keep, extra in ((7, 0, 1, {}), (11, -1, 0, {}), (13, 1, 1, {"select_last_index": 1}))],
    ("ArgMax", [ints(7, 3, dtype="i4")], 13, {}),
    ("CumSum", [X, np.int64(2)], 11, {}),
    ("CumSum", [X, np.int32(-1)], 14, {"exclusive": 1}),
    ("CumSum", [ints(3, 4), np.int32(0)], 14, {"exclusive": 1, "reverse": 1}),
    ("CumSum", [X, np.int64(1)], 14, {"reverse": 1}),
    # normalisations
    *[(op, [X], opset, {} if axis is None else {"axis": axis}) for op in ("Softmax", "LogSoftmax")
      for opset, axis in ((7, None), (11, 2), (11, -1), (13, None), (13, 1))],
    ("Softmax", [X * 100], 13, {}),
    ("Softmax", [floats(0, 3)], 13, {}),
    ("Softmax", [F16], 13, {}),
    ("BatchNormalization", [X, floats(3), floats(3), floats(3), np.abs(floats(3))], 7, {}),
    ("BatchNormalization", [X, floats(3), floats(3), floats(3), np.abs(floats(3))], 9, {"epsilon": 0.1}),
    ("BatchNormalization", [X, floats(3), floats(3), floats(3), np.abs(floats(3))], 15, {"momentum": 0.5}),
    ("BatchNormalization", [X[:, :, 0, 0], floats(3), floats(3), floats(3), np.abs(floats(3))], 15, {}),
    ("InstanceNormalization", [X, floats(3), floats(3)], 7, {"epsilon": 0.1}),
    ("LpNormalization", [X], 7, {}),
    ("LpNormalization", [X], 22, {"axis": 1, "p": 1}),
    ("LayerNormalization", [X, floats(5), floats(5)], 17, {}),
    ("LayerNormalization", [X, floats(4, 5)], 17, {"axis": 2, "epsilon": 0.1}),
    ("LayerNormalization", [F16, F16[0, 0, 0], F16[0, 0, 1]], 17, {}),
    ("LayerNormalization", [X.astype("f8"), floats(5, dtype="f8"), floats(5, dtype="f8")], 17, {}),
    ("RMSNormalization", [X, floats(5)], 23, {}),
    ("RMSNormalization", [X, floats(3, 4, 5)], 23, {"axis": 1}),
    ("GroupNormalization", [floats(2, 6, 4), floats(3), floats(3)], 18, {"num_groups": 3}),
    ("GroupNormalization", [floats(2, 6, 4), floats(6), floats(6)], 21, {"num_groups": 2}),
    # pools
    ("MaxPool", [X], 8, {"kernel_shape": [2, 3], "strides": [2, 2]}),
    ("MaxPool", [X], 12, {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1], "dilations": [2, 3]}),
    ("MaxPool", [floats(1, 2, 9)], 12, {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ("MaxPool", [floats(1, 2, 5, 6, 7)], 12, {"kernel_shape": [2, 3, 2], "auto_pad": "SAME_UPPER"}),
    ("MaxPool", [ints(1, 2, 5, 6, dtype="i1")], 12, {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER"}),
    ("MaxPool", [X], 12, {"kernel_shape": [2, 2], "auto_pad": "VALID"}),
    ("AveragePool", [X], 7, {"kernel_shape": [2, 3], "strides": [2, 2]}),
    ("AveragePool", [X], 11, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("AveragePool", [X], 11, {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("AveragePool", [X], 19, {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "dilations": [2, 2]}),
    ("AveragePool", [floats(1, 2, 10)], 19, {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ("AveragePool", [X], 11, {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("GlobalAveragePool", [X], 7, {}),
    ("GlobalMaxPool", [X], 7, {}),
    # quantisation
    ("QuantizeLinear", [X, np.float32(0.1), np.uint8(100)], 10, {}),
    ("QuantizeLinear", [X, np.float32(0.05)], 13, {}),
    ("QuantizeLinear", [X, np.float32([0.1, 0.2, 0.05]), np.int8([1, -2, 3])], 13, {"axis": 1}),
    ("QuantizeLinear", [X, np.float32([0.1, 0.2, 0.05]), np.uint16([1, 2000, 3])], 21, {"axis": -3}),
    ("DequantizeLinear", [u8(2, 3, 4), np.float32(0.1), np.uint8(128)], 10, {}),
    ("DequantizeLinear", [ints(2, 3, 4, dtype="i1"), np.float32([0.1, 0.2, 0.3]), np.int8([1, 2, 3])], 13, {"axis": 1}),
    ("DequantizeLinear", [ints(2, 3, 4, dtype="i4"), np.float32(0.1)], 13, {}),
    ("DequantizeLinear", [ints(2, 3, dtype="i1"), np.float16([0.1, 0.2]), np.int8([1, 2])], 19, {"axis": 0}),
    ("MatMulInteger", [u8(5, 7), u8(7, 3)], 10, {}),
    ("MatMulInteger", [u8(5, 7), ints(7, 3, dtype="i1"), np.uint8(12), np.int8(-3)], 10, {}),
    ("MatMulInteger", [u8(2, 5, 7), ints(7, 3, dtype="i1"), np.uint8(9), np.int8([1, 2, 3])], 10, {}),
    ("QLinearMatMul", [
        u8(5, 7), np.float32(0.1), np.uint8(120), u8(7, 3), np.float32(0.02), np.uint8(7), np.float32(0.3), np.uint8(9),
    ], 10, {}),
    ("ConvInteger", [u8(2, 4, 6, 5), u8(6, 2, 3, 2), np.uint8(11)], 10, {
        "group": 2, "pads": [1, 0, 1, 1], "strides": [2, 1],
    }),
    ("QLinearConv", [
        u8(1, 3, 7, 6), np.float32(0.1), np.uint8(120), ints(4, 3, 3, 3, dtype="i1"),
        np.float32([0.02, 0.01, 0.03, 0.05]), np.int8([0, 0, 0, 0]), np.float32(0.9), np.uint8(9), ints(4, dtype="i4"),
    ], 10, {"pads": [1, 1, 1, 1], "dilations": [1, 2]}),
    ("ConvInteger", [u8(1, 1, 3, 4), u8(2, 1, 2, 2), np.uint8(3)], 10, {"pads": [4, 5, 6, 7], "strides": [3, 4]}),
    ("ConvTranspose", [floats(2, 4, 5, 6), floats(4, 3, 3, 2), floats(3)], 11, {
        "strides": [2, 3], "pads": [1, 0, 0, 1],
    }),
    ("ConvTranspose", [floats(1, 4, 5, 6), floats(4, 3, 3, 3)], 11, {
        "group": 2, "strides": [2, 2], "output_padding": [1, 1],
    }),
    ("ConvTranspose", [floats(2, 3, 9), floats(3, 2, 4)], 11, {"dilations": [2], "output_shape": [14]}),
    ("ConvTranspose", [floats(2, 3, 4, 5), floats(3, 2, 3, 3)], 11, {"strides": [3, 2], "auto_pad": "SAME_UPPER"}),
    ("ConvTranspose", [floats(1, 2, 3, 4, 3), floats(2, 2, 2, 3, 2)], 11, {"strides": [2, 1, 2]}),
    ("Resize", [IMAGE, None, np.float32([1, 1, 2, 2])], 11, {"mode": "nearest"}),
    ("Resize", [IMAGE, None, np.float32([1, 1, 2.5, 0.6])], 13, {"mode": "linear"}),
    ("Resize", [IMAGE, None, np.float32([1, 1, 3, 2])], 13, {
        "mode": "linear", "coordinate_transformation_mode": "align_corners",
    }),
    ("Resize", [IMAGE, None, None, i64(1, 3, 9, 4)], 13, {
        "mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel",
    }),
    ("Resize", [IMAGE, None, None, i64(1, 3, 7, 11)], 18, {
        "mode": "nearest", "nearest_mode": "ceil", "coordinate_transformation_mode": "asymmetric",
    }),
    ("Resize", [IMAGE, None, np.float32([0.5, 2])], 18, {"mode": "linear", "axes": [3, 2]}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op_type", "ins", "opset", "attrs"),
    [pytest.param(*case, id=f"{case[0]}-{case[2]}-{at}") for at, case in enumerate(CASES)],
)
def test_case(op_type: str, ins: list[Any], opset: int, attrs: dict[str, Any]) -> None:
    check(op_type, [None if x is None else np.asarray(x) for x in ins], opset, attrs)


@pytest.mark.parametrize("x", [floats(4, 5), np.float32([0, 0, 0]), np.abs(floats(2, 3, 4)) + 1])
def test_dynamic_quantisation(x: Array) -> None:
    check("DynamicQuantizeLinear", [x], 11, {}, outputs=3)


def test_integer_products_are_exact_beyond_one_block() -> None:
    a, b = u8(270, 4100), ints(4100, 260, dtype="i1", low=-128, high=128)
    a[0], b[:, 0] = 255, -128
    (found,) = run_native("MatMulInteger", Call({}, 10), [a, b, np.uint8(0), np.int8(127)])
    expected = a.astype(np.float64) @ (b.astype(np.float64) - 127)
    np.testing.assert_array_equal(found, expected.astype(np.int64))


def test_zero_points_of_rows_and_columns() -> None:
    a, b, rows, cols = u8(2, 5, 7), u8(7, 3), np.uint8([[[1], [2], [3], [4], [5]]] * 2), np.uint8([4, 5, 6])
    (found,) = run_native("MatMulInteger", Call({}, 10), [a, b, rows, cols])
    expected = (a.astype(int) - rows) @ (b.astype(int) - cols.astype(int))
    np.testing.assert_array_equal(found, expected)
    (found,) = run_native("MatMulInteger", Call({}, 10), [a[0], b, rows[0, :, 0], cols])
    np.testing.assert_array_equal(found, expected[0])
    (found,) = run_native("MatMulInteger", Call({}, 10), [a[0, 0], b, np.uint8(1), cols])
    np.testing.assert_array_equal(found, expected[0, 0])


def test_padding_takes_no_memory() -> None:
    far = {"pads": [2**31, 2**31, 2**31, 2**31], "strides": [2**31, 2**31]}
    (found,) = run_native("ConvInteger", Call(far, 10), [u8(1, 1, 3, 4), u8(2, 1, 2, 2), np.uint8(3)])
    assert found.shape == (1, 2, 3, 3)
    assert found.any()


@pytest.mark.parametrize("attrs", [{}, {"strides": (2, 3)}, {"pads": (1, 0, 2, 1)}, {"dilations": (2, 1), "group": 2}])
def test_the_transpose_of_a_convolution_is_its_adjoint(attrs: dict[str, Any]) -> None:
    """<conv(y), x> = <y, its transpose(x)> in float64."""
    kind = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1} | attrs
    w, y = floats(4, 6 // kind["group"], 3, 2, dtype="f8"), floats(2, 6, 11, 12, dtype="f8")
    there = naive.conv2d(y, w, **kind)
    x = floats(*there.shape, dtype="f8")
    # Pixels at the end that no window of the convolution reaches.
    left = [
        size - s * (n - 1) - d * (k - 1) - 1 + kind["pads"][axis] + kind["pads"][axis + 2]
        for axis, (size, s, n, d, k) in enumerate(
            zip(y.shape[2:], kind["strides"], there.shape[2:], kind["dilations"], w.shape[2:], strict=True)
        )
    ]
    (back,) = run_native("ConvTranspose", Call(kind | {"output_padding": left}, 11), [x, w])
    assert back.shape == y.shape
    np.testing.assert_allclose((there * x).sum(), (y * back).sum(), rtol=1e-12)


REDUCTIONS = (
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSum ReduceLogSumExp"
)


@pytest.mark.parametrize("op_type", REDUCTIONS.split())
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i4"])
@pytest.mark.parametrize("opset", [7, 11, 13, 18])
def test_reduction(op_type: str, dtype: str, opset: int) -> None:
    if dtype == "i4" and op_type in {"ReduceLogSum", "ReduceLogSumExp"}:
        pytest.skip("not defined: the standard took the integers back")
    x = np.abs(X).astype(dtype) + np.array(1, dtype) if op_type == "ReduceLogSum" else X.astype(dtype)
    as_input = opset >= (13 if op_type == "ReduceSum" else 18)
    for axes in ([1], [0, 2], [-1, 1], [0, 1, 2, 3], None):
        for keep in (0, 1):
            given = axes is not None
            attrs = {"keepdims": keep, **({"axes": axes} if given and not as_input else {})}
            check(op_type, [x, i64(*axes)] if given and as_input else [x], opset, attrs)
    if as_input:
        check(op_type, [x], opset, {"noop_with_empty_axes": 1})


def test_reductions_of_nothing() -> None:
    empty, axes = floats(2, 0, 3), i64(1)
    for op_type, value in {"ReduceSum": 0, "ReduceProd": 1, "ReduceMax": -np.inf, "ReduceMin": np.inf, "ReduceL2": 0,
                           "ReduceLogSumExp": -np.inf}.items():  # fmt: skip
        found = run_native(op_type, Call({"keepdims": 0}, 20), [empty, axes])[0]
        np.testing.assert_array_equal(found, np.full((2, 3), value, np.float32))
    for op_type in ("ArgMax", "ReduceMean"):
        with pytest.raises(OpError, match="some elements"):
            infer(op_type, Call({"axis": 1}, 20), [empty, axes])


@pytest.mark.parametrize(("opset", "attrs"), [(10, {}), (11, {"axis": 1, "largest": 0}), (11, {"axis": 0})])
def test_topk(opset: int, attrs: dict[str, Any]) -> None:
    check("TopK", [np.round(X), i64(2)], opset, attrs, outputs=2)


def test_topk_of_opset_1() -> None:
    values, at = run_native("TopK", Call({"k": 2}, 7, 2), [np.float32([[1, 3, 3, 2]])])
    assert (values.tolist(), at.tolist()) == ([[3, 3]], [[1, 2]])


@pytest.mark.parametrize(
    ("opset", "ins", "attrs", "outputs"),
    [
        (7, [X], {"axis": 3, "split": [2, 3]}, 2),
        (7, [X], {"axis": 1}, 3),
        (13, [X, i64(1, 0, 4)], {"axis": -1}, 3),
        (13, [X], {"axis": 2}, 2),
        (18, [X], {"axis": 3, "num_outputs": 3}, 3),
        (18, [X, i64(1, 1)], {}, 2),
    ],
)
def test_split(opset: int, ins: list[Array | None], attrs: dict[str, Any], outputs: int) -> None:
    check("Split", ins, opset, attrs, outputs)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_layer_normalization_statistics(outputs: int) -> None:
    check("LayerNormalization", [X, floats(4, 5), floats(4, 5)], 17, {"axis": -2}, outputs)
    mean, _ = infer("LayerNormalization", Call({}, 17, 2), [F16, F16[0, 0, 0]])
    assert mean.dtype == np.float16
    stats = infer("LayerNormalization", Call({}, 17, 3), [F16, F16[0, 0, 0]])[1:]
    assert {t.dtype for t in stats} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("attrs", "value"),
    [
        ({"value": np.float16([[1, 2]])}, np.float16([[1, 2]])),
        ({"value_float": 1.5}, np.float32(1.5)),
        ({"value_floats": [1.5, 2]}, np.float32([1.5, 2])),
        ({"value_int": 2**40}, np.int64(2**40)),
        ({"value_ints": []}, np.zeros(0, np.int64)),
    ],
)
def test_constant(attrs: dict[str, Any], value: Any) -> None:
    close(run_native("Constant", Call(attrs, 13), []), [value])


CASTS = ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "u4", "?"]


@pytest.mark.parametrize("source", CASTS)
@pytest.mark.parametrize("target", CASTS)
def test_cast(source: str, target: str) -> None:
    low = 0 if "u" in source + target else -9
    x = (ints(5, 7, low=low) + (0.5 if source[0] == "f" else 0)).astype(source)
    check("Cast", [x], 13, {"to": int(helper.np_dtype_to_tensor_dtype(np.dtype(target)))})
    check("CastLike", [x, np.zeros(1, target)], 15, {})


def test_cast_corners() -> None:
    to = {np.dtype(np.bool_): 9, np.dtype(np.float16): 10, np.dtype(np.uint8): 2}
    cases = {np.bool_: ([0.2, np.nan, -0.0], [True, True, False]), np.float16: ([1e9, 1e-9, 1], [np.inf, 0, 1])}
    for dtype, (values, expected) in cases.items():
        found = run_native("Cast", Call({"to": to[np.dtype(dtype)]}, 13), [np.float32(values)])[0]
        assert found.tolist() == expected
    assert run_native("Cast", Call({"to": 2}, 13), [i64(-1, 256, 7)])[0].tolist() == [255, 0, 7]


@given(st.data())
def test_slice(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    number = st.integers(-7, 7) | st.sampled_from([-(2**63), 2**63 - 1, 2**31 - 1])
    starts, ends = ([data.draw(number) for _ in axes] for _ in range(2))
    # onnxruntime reads an end of INT_MAX as "to the front" where the step is negative; the standard says INT_MIN.
    steps = [data.draw(st.integers(-3 if end < 2**30 else 1, 3).filter(bool)) for end in ends]
    x = floats(*shape)
    ins = [x, i64(*starts), i64(*ends), i64(*axes), i64(*steps)]
    check("Slice", ins, 13, {})


@given(st.data())
def test_pad(data: st.DataObject) -> None:
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
    mode = data.draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    pads = [data.draw(st.tuples(st.integers(0, 5), st.integers(0, 5))) for _ in shape]
    x = floats(*shape)
    found = run_native("Pad", Call({"mode": mode}, 19), [x, np.array(pads, np.int64).T.reshape(-1)])[0]
    np.testing.assert_array_equal(found, np.pad(x, pads, mode=mode))
    cropped = run_native("Pad", Call({}, 19), [found, -np.array(pads, np.int64).T.reshape(-1)])[0]
    np.testing.assert_array_equal(cropped, x)


def check_pooling_kernel(attrs: dict[str, Any], x: Array) -> None:
    """Hold the kernel to what NumPy makes of it, to the bit, NaN and infinities among the elements."""
    op, call = pool.MaxPool(), Call(attrs, 12)
    x = x.copy()
    x.reshape(-1)[::7], x.reshape(-1)[3::11], x.reshape(-1)[5::13] = np.nan, np.inf, -np.inf
    (kind,) = infer("MaxPool", call, [x])
    expected, found = np.empty(kind.shape, kind.dtype), np.full(kind.shape, 77, kind.dtype)
    op.run(call, [x], [expected])
    assert op.emits(call, [Operand.of(x)]) == (x.ndim <= 4)
    if x.ndim <= 4:
        op.run_kernels(call, [Operand.of(x)], [found])
        np.testing.assert_array_equal(found, expected)


POOLING_KERNEL = {
    "wide": ((3, 5, 33, 70), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "overlapping": ((1, 2, 19, 40), {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}),
    "dilated": ((2, 1, 30, 50), {"kernel_shape": [3, 2], "strides": [1, 3], "dilations": [4, 5], "pads": [2, 1, 0, 3]}),
    "one axis": ((2, 3, 64), {"kernel_shape": [4], "strides": [4], "ceil_mode": 1}),
    "only padding at the end": ((1, 1, 4, 4), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [0, 0, 1, 1]}),
    "more padding than image": ((1, 1, 2, 2), {"kernel_shape": [3, 3], "strides": [5, 5], "pads": [2, 2, 2, 2]}),
    "many planes": ((70, 9, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "no images": ((0, 3, 8, 8), {"kernel_shape": [2, 2]}),
}


@pytest.mark.parametrize("case", POOLING_KERNEL)
def test_pooling_kernel(case: str) -> None:
    shape, attrs = POOLING_KERNEL[case]
    check_pooling_kernel(attrs, floats(*shape))
    if "padding" not in case:
        check("AveragePool", [floats(*shape)], 19, attrs)


def test_a_line_too_long_for_the_pooling_kernel_is_left_to_numpy() -> None:
    x = Operand(TensorType(np.dtype("f4"), (1, 1, 1, 2**25)))
    assert not pool.MaxPool().emits(Call({"kernel_shape": [1, 2]}, 12), [x])


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER"])
def test_windows_that_share_their_padding(auto: str, ceil: bool) -> None:
    for size, kernel, stride, dilation in itertools.product(range(9), range(1, 4), range(1, 6), range(1, 3)):
        found = convolution.window(auto, ceil, size, kernel, stride, dilation, (7, 7))
        total = max((found.count - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
        assert found.count == -(-size // stride)
        assert sum(found.pads) == total
        assert found.pads[auto == "SAME_UPPER"] == total - total // 2


def test_pools_of_empty_images_are_empty_where_padding_is_shared() -> None:
    attrs = {"kernel_shape": [2, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}
    assert run("MaxPool", Call(attrs, 12), [floats(1, 2, 0, 5)])[0].shape == (1, 2, 0, 3)


@given(st.data())
def test_pool(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    draw = lambda low, high: [data.draw(st.integers(low, high)) for _ in range(rank)]  # noqa: E731
    kernel, strides, dilations = draw(1, 3), draw(1, 3), draw(1, 2)
    auto_pad = data.draw(st.sampled_from(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    attrs: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "auto_pad": auto_pad}
    if auto_pad == "NOTSET":
        attrs["pads"] = [data.draw(st.integers(0, k - 1)) for k in kernel * 2]
        attrs["ceil_mode"] = data.draw(st.integers(0, 1))
    elif auto_pad != "VALID":
        # onnxruntime leaves the dilation out of the padding, and crops where the stride is longer than the window.
        dilations[:] = [1] * rank
        strides[:] = map(min, strides, kernel)
    x = floats(1, 2, *(data.draw(st.integers(d * (k - 1) + 1, 8)) for k, d in zip(kernel, dilations, strict=True)))
    check("MaxPool", [x], 12, attrs)
    check_pooling_kernel(attrs, x)
    if rank < 3:
        check("AveragePool", [x], 19, {**attrs, "count_include_pad": data.draw(st.integers(0, 1))})


REFUSED: list[tuple[str, list[Any], int, dict[str, Any], str]] = [
    ("Add", [X, floats(4)], 14, {}, "do not broadcast"),
    ("Add", [X, floats(5, dtype="f8")], 14, {}, "float64"),
    ("Add", [X], 14, {}, "missing"),
    ("And", [X, X], 7, {}, "expected one of bool"),
    ("Relu", [ints(3, dtype="u1")], 14, {}, "uint8"),
    ("BitShift", [ints(3, dtype="u1"), ints(3, dtype="u1")], 11, {"direction": "UP"}, "UP"),
    ("Where", [X, X, X], 16, {}, "bool"),
    ("Clip", [X, floats(2)], 13, {}, "scalar"),
    ("Max", [], 13, {}, "one or more"),
    ("PRelu", [floats(3), X], 16, {}, "broadcasts to"),
    ("Reshape", [X, i64(7, -1)], 14, {}, "whole number"),
    ("Reshape", [X, i64(-1, -1)], 14, {}, "at most one"),
    ("Reshape", [X, i64(7, 7)], 14, {}, "49"),
    ("Reshape", [X, i64(0, 0, 0, 0, 0)], 14, {}, "no dimension 4"),
    ("Reshape", [X, i64(0, -1)], 14, {"allowzero": 1}, "allowzero"),
    ("Reshape", [X, floats(2)], 14, {}, "float32"),
    ("Flatten", [X], 13, {"axis": 5}, "axis is 5"),
    ("Squeeze", [X, i64(1)], 13, {}, "length 3"),
    ("Unsqueeze", [X, i64(1, 1)], 13, {}, "once"),
    ("Unsqueeze", [X, np.arange(70)], 13, {}, "rank 74"),
    ("Transpose", [X], 13, {"perm": [0, 1, 2]}, "perm"),
    ("Expand", [X, i64(2)], 13, {}, "broadcast"),
    ("Tile", [X, i64(2)], 13, {}, "expected 4"),
    ("Tile", [floats(2), i64(-1)], 13, {}, "negative"),
    ("Concat", [X, X[:1]], 13, {"axis": 1}, "input 1"),
    ("Concat", [X, X], 13, {}, "axis is missing"),
    ("Concat", [np.float32(1), np.float32(1)], 13, {"axis": 0}, "rank 1"),
    ("Split", [X, i64(1, 1)], 13, {"axis": 1}, "split is"),
    ("DepthToSpace", [X], 13, {"blocksize": 2}, "multiple"),
    ("DepthToSpace", [X], 13, {}, "blocksize is 0"),
    ("SpaceToDepth", [X], 13, {"blocksize": 3}, "multiples"),
    ("ConstantOfShape", [i64(-1)], 9, {}, "negative"),
    ("Range", [np.int64(0), np.int64(3), np.int64(0)], 11, {}, "delta not 0"),
    ("Range", [np.float32(0), np.float32(np.inf), np.float32(1)], 11, {}, "finite"),
    ("Slice", [X, i64(1), i64(2), i64(0), i64(0)], 13, {}, "none to be 0"),
    ("Slice", [X, i64(1), i64(2), i64(4)], 13, {}, "axis is 4"),
    ("Slice", [X, i64(1, 2), i64(2)], 13, {}, "equally many"),
    ("Slice", [X], 9, {"starts": [1]}, "ends are missing"),
    ("Gather", [X, floats(2)], 13, {}, "indices"),
    ("GatherElements", [X, ints(2)], 13, {}, "indices"),
    ("GatherND", [X, ints(2, 5)], 13, {}, "last axis"),
    ("GatherND", [X, ints(3, 1)], 13, {"batch_dims": 1}, "batch"),
    ("ScatterND", [SQUARE, i64(1).reshape(1, 1), floats(1, 5)], 13, {}, "updates"),
    ("OneHot", [ints(3), np.int64(-1), floats(2)], 11, {}, "negative"),
    ("Pad", [SQUARE, i64(1, 2)], 13, {}, "expected 4"),
    ("Pad", [SQUARE, i64(-9, 0, 9, 0)], 13, {}, "only 6 elements"),
    ("ConstantOfShape", [i64(2**62, 2**62, 0)], 9, {}, "address"),
    ("OneHot", [ints(3), np.float32(np.nan), floats(2)], 11, {}, "finite"),
    ("Pad", [floats(0), i64(1, 0)], 13, {"mode": "edge"}, "no element"),
    ("ReduceSum", [X, i64(4)], 13, {}, "axis is 4"),
    ("ReduceSum", [X, i64(1, -3)], 13, {}, "once"),
    ("ArgMax", [X], 13, {"axis": 4}, "axis is 4"),
    ("TopK", [X, i64(6)], 11, {}, "k is 6"),
    ("CumSum", [X, np.int64(4)], 14, {}, "axis is 4"),
    ("Softmax", [np.float32(1)], 13, {}, "rank 0"),
    ("LayerNormalization", [X, floats(4)], 17, {}, "broadcast"),
    ("BatchNormalization", [X, floats(4), floats(3), floats(3), floats(3)], 15, {}, "scale"),
    ("GroupNormalization", [floats(2, 6, 4), floats(6), floats(6)], 21, {"num_groups": 4}, "divisor"),
    ("MaxPool", [X], 12, {}, "kernel_shape"),
    ("MaxPool", [X], 12, {"kernel_shape": [2, 2], "strides": [0, 1]}, "strides"),
    ("MaxPool", [X], 12, {"kernel_shape": [9, 9]}, "does not fit"),
    ("AveragePool", [X], 12, {"kernel_shape": [2, 2], "auto_pad": "X"}, "auto_pad"),
    ("QuantizeLinear", [X, np.float32([1, 2])], 13, {}, "scale"),
    ("DequantizeLinear", [X, np.float32(1)], 13, {}, "float32"),
    ("Cast", [X], 13, {}, "to is missing"),
    ("MatMulInteger", [u8(5, 7), u8(6, 3)], 10, {}, "inner sizes 7 and 6"),
    ("MatMulInteger", [u8(5, 7), X], 10, {}, "float32"),
    ("MatMulInteger", [u8(5, 7), ints(7, 3, dtype="i1"), np.int8(1)], 10, {}, "zero point of A"),
    ("ConvInteger", [u8(1, 2, 5, 5), u8(3, 4, 2, 2)], 10, {}, "channels"),
    ("MatMulInteger", [u8(5, 7), u8(7, 3), np.uint8(0), u8(7, 3)], 10, {}, "3 along axis -1"),
    ("ConvTranspose", [floats(1, 4, 5, 6), floats(3, 3, 3, 3)], 11, {}, "ranks or channels"),
    ("ConvTranspose", [floats(1, 4, 5), floats(4, 3, 3)], 11, {"pads": [9, 9]}, "the output would have"),
    ("ConvTranspose", [floats(1, 4, 5), floats(4, 3, 3)], 11, {"strides": [0]}, "strides"),
    ("Resize", [IMAGE], 13, {}, "neither scales nor sizes"),
    ("Resize", [IMAGE, floats(0), np.float32([1, 2])], 13, {}, "expected 4 of them"),
    ("Resize", [IMAGE, floats(0), np.float32([1, 1, -1, 2])], 13, {}, "above 0"),
    ("Resize", [IMAGE, floats(0), floats(0), i64(1, 3, 2**62, 2**62)], 13, {}, "beyond what memory"),
]


@pytest.mark.parametrize(
    ("op_type", "ins", "opset", "attrs", "message"),
    [pytest.param(*case, id=f"{case[0]}-{at}") for at, case in enumerate(REFUSED)],
)
def test_refused(op_type: str, ins: list[Any], opset: int, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        infer(op_type, Call(attrs, opset, 2 if op_type == "Split" else 1), [np.asarray(x) for x in ins])


@pytest.mark.parametrize(
    ("op_type", "ins", "attrs"),
    [
        ("Gather", [X, i64(2)], {}),
        ("Gather", [X, i64(-3)], {}),
        ("Gather", [floats(0, 3), i64(0)], {}),
        ("GatherElements", [SQUARE, i64(6).reshape(1, 1)], {}),
        ("GatherND", [SQUARE, i64(0, 6).reshape(1, 2)], {}),
        ("ScatterElements", [SQUARE, i64(-7).reshape(1, 1), floats(1, 1)], {}),
        ("ScatterND", [SQUARE, i64(6).reshape(1, 1), floats(1, 6)], {}),
    ],
)
def test_index_out_of_range(op_type: str, ins: list[Array], attrs: dict[str, Any]) -> None:
    with pytest.raises(OpError, match="out of range"):
        run_native(op_type, Call(attrs, 13), ins)


NOT_NATIVE: list[tuple[str, list[Any], dict[str, Any], int]] = [
    ("Concat", [np.array(["a"], object)], {"axis": 0}, 1),
    ("Identity", [np.zeros(2, ml_dtypes.bfloat16)], {}, 1),
    ("Add", [np.zeros(2, np.complex64)] * 2, {}, 1),
    ("Dropout", [X], {}, 2),
    ("Dropout", [X, np.float32(0.5), np.bool_(True)], {}, 1),
    ("BatchNormalization", [X, *[floats(3)] * 4], {"training_mode": 1}, 1),
    ("MaxPool", [X], {"kernel_shape": [2, 2]}, 2),
    ("Cast", [X], {"to": 16}, 1),
    ("Cast", [X], {"to": 8}, 1),
    ("Constant", [], {"value_string": b"x"}, 1),
    ("ConstantOfShape", [i64(2)], {"value": np.zeros(1, ml_dtypes.bfloat16)}, 1),
    ("QuantizeLinear", [X, np.float32(1)], {"output_dtype": 17}, 1),
    ("DequantizeLinear", [ints(4, 2, dtype="i1"), np.ones((2, 2), "f4")], {"block_size": 2, "axis": 0}, 1),
    ("LayerNormalization", [X, floats(5)], {"stash_type": 16}, 1),
]


@pytest.mark.parametrize(("op_type", "ins", "attrs", "outputs"), NOT_NATIVE)
def test_not_native(op_type: str, ins: list[Any], attrs: dict[str, Any], outputs: int) -> None:
    known = [Operand.of(np.asarray(x)) for x in ins]
    assert not is_native(REGISTRY[op_type], Call(attrs, 23, outputs), known)


def test_training_mode_that_is_not_known_is_not_native() -> None:
    ins = [Operand.of(X), None, Operand(TensorType(np.dtype(bool), ()))]
    assert not is_native(REGISTRY["Dropout"], Call({}, 13), ins)


def test_reference_op() -> None:
    x = floats(2, 3)
    call = Call({"equation": "ij->ji"}, 13)
    np.testing.assert_array_equal(ReferenceOp("Einsum").evaluate(call, [x])[0], x.T)
    assert ReferenceOp("Det").evaluate(Call({}, 11), [np.eye(2, dtype="f4")])[0] == np.float32(1)
    text = ReferenceOp("StringConcat").evaluate(Call({}, 20), [np.array(["a"], object)] * 2)[0]
    assert (text.dtype, text.tolist()) == (np.dtype(object), ["aa"])
    parts = ReferenceOp("SplitToSequence").evaluate(Call({}, 11), [x])[0]
    assert isinstance(parts, list)
    assert [part.shape for part in parts] == [(1, 3), (1, 3)]
    assert ReferenceOp("SequenceLength").evaluate(Call({}, 11), [parts])[0] == 2
    found = ReferenceOp("Binarizer", "ai.onnx.ml").evaluate(Call({"threshold": 0.0}, 1), [x])[0]
    np.testing.assert_array_equal(found, (x > 0).astype("f4"))
    size = np.zeros(0, "f4")
    resized = ReferenceOp("Resize").evaluate(Call({"mode": "nearest"}, 13), [x, None, np.float32([2, 1])])[0]
    assert (resized.shape, size.size) == ((4, 3), 0)


def test_reference_op_builds_one_evaluator_for_one_kind_of_inputs() -> None:
    op = ReferenceOp("Hardmax")
    for _ in range(3):
        op.evaluate(Call({}, 13), [X])
    assert len(op._evaluators) == 1


def test_reference_op_runs_bodies_that_depend_on_types() -> None:
    x = floats(3, 4)
    found = ReferenceOp("SoftmaxCrossEntropyLoss").evaluate(Call({}, 13), [x, i64(1, 0, 3)])[0]
    expected = -np.log(np.exp(x) / np.exp(x).sum(1, keepdims=True))[range(3), [1, 0, 3]].mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("op_type", "domain"), [("Nope", ""), ("Nope", "ai.onnx.ml"), ("Add", "com.example"), ("Normalizer2", "ai.onnx.ml")]
)
def test_reference_op_missing(op_type: str, domain: str) -> None:
    with pytest.raises(UnsupportedError, match=op_type):
        ReferenceOp(op_type, domain)


def test_reference_op_errors_are_one_line() -> None:
    for call, ins in [(Call({"equation": "ij,jk"}, 13), [X]), (Call({"nope": 1}, 13), [X]), (Call({}, 13), [])]:
        with pytest.raises(OpError, match="Einsum") as caught:
            ReferenceOp("Einsum").evaluate(call, ins)
        assert "\n" not in str(caught.value)


FUZZ: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("keepdims", "ceil_mode", "noop_with_empty_axes", "select_last_index", "largest"), (0, 1)),
    **dict.fromkeys(("exclusive", "reverse", "batch_dims", "upper", "fmod", "allowzero", "count_include_pad"), (0, 1)),
    "axis": [-2, -1, 0, 1, 2, 5],
    "axes": [[0], [1], [-1], [0, 0], []],
    "kernel_shape": [[1], [2, 2], [3, 3], [2], [10**12, 2]],
    "strides": [[1, 1], [2], [2, 3], [10**15, 1]],
    "pads": [[0, 1, 1, 0], [1, 1], [0, 0], [10**12, 0, 0, 0], [-1, 0, 0, 1], [-2, 4]],
    "dilations": [[2, 2], [1]],
    "auto_pad": ["SAME_UPPER", "VALID", "NOTSET"],
    "mode": ["reflect", "edge", "wrap", "CRD", "constant"],
    "to": [1, 9, 10, 7, 3, 99],
    "perm": [[1, 0], [0, 1, 2], [2, 0, 1]],
    "blocksize": [0, 1, 2],
    "split": [[1, 1], [2]],
    "num_outputs": [1, 2, 3],
    "starts": [[0], [-1, 1]],
    "ends": [[5], [-9, 2**63 - 1]],
    "min": [-1.0, 2.0],
    "num_groups": [1, 2],
    "reduction": ["add", "max", "none"],
    "start": [-1, 1],
    "value": [np.float32([1])],
    "direction": ["LEFT", "RIGHT"],
    "k": [0, 1, 3],
}


def anything(rng: np.random.Generator) -> Array:
    """A tensor that may be a shape, an index, empty, a scalar, not finite."""
    if rng.random() < 0.4:
        return rng.choice([-2, -1, 0, 1, 2, 3, 5, 2**62], rng.integers(0, 4)).astype(np.int64)
    shape = tuple(rng.integers(0, 4, rng.integers(0, 5)))
    x = np.asarray(rng.standard_normal(shape) * 3)
    x[rng.random(shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
    with np.errstate(all="ignore"):
        return x.astype(rng.choice(["f4", "f4", "f4", "?", "i1", "i4", "u1", "u8", "f2", "f8"]))


@pytest.mark.parametrize("seed", range(4))
def test_nonsense_raises_op_errors_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for op_type in sorted(NATIVE) * 25:
        first = anything(rng)
        ins = [first, *(first if rng.random() < 0.5 else anything(rng) for _ in range(rng.integers(0, 3)))]
        attrs = {name: menu[rng.integers(len(menu))] for name, menu in FUZZ.items() if rng.random() < 0.3}
        call = Call(attrs, int(rng.choice([7, 10, 11, 13, 18, 21, 25])), int(rng.choice([1, 1, 2])))
        if not is_native(REGISTRY[op_type], call, [Operand.of(x) for x in ins]):
            continue
        with contextlib.suppress(OpError):
            types = infer(op_type, call, ins)
            if sum(t.nbytes for t in types) < 1e6:
                REGISTRY[op_type].run(call, ins, [np.empty(t.shape, t.dtype) for t in types])
