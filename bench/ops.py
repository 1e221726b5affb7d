"""Every native op by itself beside onnxruntime: a model of one node, one thread, alternating.

    python -m bench.ops [--seconds S] [--out FILE.md] [--json] [OP ...]

Operands are as large as those of small networks, 65 536 numbers where nothing speaks against it: large enough that a
run is the op's own work. Answers are held against onnxruntime's first; an op that it does not run is named at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from bench.environment import environment
from bench.tables import duration, table
from bench.timing import alternate
from hashinfer.files import atomic_write

Array = NDArray[Any]
OPSET = 23
MOST = 5.0
"""Times onnxruntime's time: what no op should take more than."""
_random = np.random.default_rng(0)


def floats(*shape: int) -> Array:
    """Normal float32."""
    return _random.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> Array:
    """float32 between 0.1 and 0.9."""
    return _random.uniform(0.1, 0.9, shape).astype(np.float32)


def bools(*shape: int) -> Array:
    """True half of the time."""
    return _random.random(shape) < 0.5


def whole(*shape: int, kind: str = "i4", low: int = 0, high: int = 100) -> Array:
    """Whole numbers from `low` up to `high`."""
    return _random.integers(low, high, shape).astype(kind)


@dataclass(frozen=True, slots=True)
class Case:
    """A node and its operands. fixed: those from this one on are constants of the model; None: all but the first."""

    op: str
    operands: Sequence[Array | None]
    attrs: Mapping[str, Any] = field(default_factory=dict)
    outputs: int = 1
    fixed: int = 1
    exact: bool = True
    """Whether whole numbers are to be onnxruntime's to the last one; quantised ones may be one off."""

    @property
    def name(self) -> str:
        """One for each case: operands by their shapes, small constants by their values, and the attributes."""
        first = self.operands[0]
        shown = ["-" if x is None else _shown(np.asarray(x), k >= self.fixed) for k, x in enumerate(self.operands)]
        shown += [f"{key}={value}" for key, value in self.attrs.items()]
        return f"{self.op} ({'' if first is None else f'{np.asarray(first).dtype} '}{', '.join(shown)})"


def _shown(x: Array, constant: bool) -> str:
    if constant and x.size <= 8:
        return np.array2string(x, precision=3, separator=", ")
    return "x".join(map(str, x.shape)) or "scalar"


X = floats(16, 64, 64)
UNARY = (
    *("Abs", "Acosh", "Asinh", "Atan", "Ceil", "Celu", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu"),
    *("HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "LogSoftmax", "Mish", "Neg", "Relu"),
    *("Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Swish", "Tan", "Tanh"),
    "ThresholdedRelu",
)
REDUCTIONS = (
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
    *("ReduceSum", "ReduceSumSquare"),
)


def cases() -> Iterator[Case]:
    """At least one for every native op."""
    for op in UNARY:
        yield Case(op, [np.abs(X) + 1 if op == "Acosh" else X])
    for op in ("Acos", "Asin", "Atanh", "Log", "Reciprocal", "Sqrt"):
        yield Case(op, [positive(16, 64, 64)])
    yield Case("PRelu", [X, floats(64, 1)])
    yield Case("Clip", [X, np.float32(-1), np.float32(1)])
    for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean"):
        yield Case(op, [X, floats(16, 64, 64)], fixed=2)
        yield Case(op, [X, floats(64, 1)])
    yield Case("Sum", [X, floats(16, 64, 64), floats(64)], fixed=3)
    yield Case("Pow", [positive(16, 64, 64), np.float32(2)])
    yield Case("Pow", [positive(16, 64, 64), positive(16, 64, 64)], fixed=2)
    yield Case("Mod", [whole(65536), whole(65536, low=1)], fixed=2)
    for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        yield Case(op, [X, floats(16, 64, 64)], fixed=2)
    for op in ("And", "Or", "Xor"):
        yield Case(op, [bools(65536), bools(65536)], fixed=2)
    yield Case("Not", [bools(65536)])
    for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor"):
        yield Case(op, [whole(65536), whole(65536)], fixed=2)
    yield Case("BitwiseNot", [whole(65536)])
    yield Case("BitShift", [whole(65536, kind="u4"), whole(65536, kind="u4", high=8)], {"direction": "LEFT"}, fixed=2)
    yield Case("Where", [bools(16, 64, 64), X, floats(64)], fixed=3)
    yield Case("Cast", [whole(65536, kind="u1")], {"to": TensorProto.FLOAT})
    yield Case("Cast", [X], {"to": TensorProto.INT64})
    yield Case("Cast", [X], {"to": TensorProto.FLOAT16})
    yield Case("CastLike", [X, np.float16(0)])
    for op in REDUCTIONS:
        x = positive(16, 64, 64)
        yield Case(op, [x, np.int64([-1])])
        yield Case(op, [x, np.int64([1])])
    for op in ("ArgMax", "ArgMin"):
        yield Case(op, [X], {"axis": -1})
    yield Case("CumSum", [X, np.int64(-1)])
    yield Case("TopK", [floats(64, 1024), np.int64([10])], outputs=2)
    yield from _shapes()
    yield from _indices()
    yield from _networks()
    yield from _quantised()


def _shapes() -> Iterator[Case]:
    yield Case("Reshape", [X, np.int64([64, -1])])
    yield Case("Flatten", [X])
    yield Case("Squeeze", [floats(1, 256, 256), np.int64([0])])
    yield Case("Unsqueeze", [floats(256, 256), np.int64([0])])
    yield Case("Dropout", [X])
    yield Case("Transpose", [X], {"perm": [0, 2, 1]})
    yield Case("Transpose", [X], {"perm": [1, 0, 2]})
    yield Case("Expand", [floats(16, 1, 64), np.int64([16, 64, 64])])
    yield Case("Tile", [floats(16, 64, 16), np.int64([1, 1, 4])])
    yield Case("Concat", [X, floats(16, 64, 64)], {"axis": 1}, fixed=2)
    yield Case("Split", [X], {"axis": 1, "num_outputs": 4}, outputs=4)
    yield Case("DepthToSpace", [floats(1, 64, 32, 32)], {"blocksize": 2})
    yield Case("SpaceToDepth", [floats(1, 16, 64, 64)], {"blocksize": 2})
    yield Case("Slice", [X, np.int64([8]), np.int64([56]), np.int64([1])])
    yield Case("Pad", [floats(1, 16, 64, 64), np.int64([0, 0, 1, 1, 0, 0, 1, 1])])
    yield Case("Trilu", [X])
    yield Case("Shape", [X])
    yield Case("Size", [X])
    yield Case("Range", [np.float32(0), np.float32(65536), np.float32(1)], fixed=3)
    yield Case("ConstantOfShape", [np.int64([16, 64, 64])])
    yield Case("Resize", [floats(1, 32, 32, 32), None, np.float32([1, 1, 2, 2])], {"mode": "nearest"})
    yield Case("Resize", [floats(1, 32, 32, 32), None, np.float32([1, 1, 2, 2])], {"mode": "linear"})
    yield Case("Resize", [floats(1, 32, 64, 64), None, np.float32([1, 1, 0.5, 0.5])], {"mode": "linear"})
    yield Case("Resize", [floats(1, 8, 32, 32), None, np.float32([1, 1, 2, 2])], {"mode": "cubic"})


def _indices() -> Iterator[Case]:
    yield Case("Gather", [floats(1000, 64), whole(1024, kind="i8", high=1000)], fixed=2)
    yield Case("GatherElements", [floats(256, 256), whole(256, 256, kind="i8", high=256)], {"axis": 1}, fixed=2)
    yield Case("GatherND", [floats(100, 10, 64), whole(512, 2, kind="i8", high=10)], fixed=2)
    places = np.tile(_random.permutation(256), (64, 1))
    yield Case("ScatterElements", [floats(64, 256), places, floats(64, 256)], {"axis": 1}, fixed=3)
    rows = _random.permutation(1024)[:512].reshape(-1, 1)
    yield Case("ScatterND", [floats(1024, 64), rows, floats(512, 64)], fixed=3)
    yield Case("OneHot", [whole(512, kind="i8"), np.int64(100), np.float32([0, 1])])


def _networks() -> Iterator[Case]:
    yield Case("MatMul", [floats(1, 512), floats(512, 512)])
    yield Case("MatMul", [floats(64, 512), floats(512, 512)])
    yield Case("MatMul", [floats(8, 64, 64), floats(8, 64, 64)], fixed=2)
    yield Case("Gemm", [floats(1, 512), floats(512, 512), floats(512)], {"transB": 1})
    yield Case("Gemm", [floats(64, 512), floats(512, 512), floats(512)], {"transB": 1})
    yield Case("Conv", [floats(1, 32, 32, 32), floats(32, 32, 3, 3), floats(32)], {"pads": [1] * 4})
    yield Case("Conv", [floats(1, 64, 32, 32), floats(64, 1, 3, 3)], {"pads": [1] * 4, "group": 64})
    yield Case("Conv", [floats(1, 64, 32, 32), floats(64, 64, 1, 1)])
    kind = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}
    yield Case("ConvTranspose", [floats(1, 32, 16, 16), floats(32, 64, 3, 3)], kind)
    for op in ("MaxPool", "AveragePool"):
        yield Case(op, [floats(1, 32, 64, 64)], {"kernel_shape": [2, 2], "strides": [2, 2]})
        yield Case(op, [floats(1, 32, 32, 32)], {"kernel_shape": [3, 3], "pads": [1] * 4})
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        yield Case(op, [floats(1, 64, 32, 32)])
    yield Case("LayerNormalization", [floats(256, 256), floats(256), floats(256)])
    yield Case("RMSNormalization", [floats(256, 256), floats(256)])
    yield Case("BatchNormalization", [floats(1, 64, 32, 32), *(positive(64) for _ in range(4))])
    yield Case("InstanceNormalization", [floats(1, 64, 32, 32), floats(64), floats(64)])
    yield Case("GroupNormalization", [floats(1, 64, 32, 32), floats(64), floats(64)], {"num_groups": 8})
    yield Case("LpNormalization", [floats(256, 256)])
    weights = [floats(1, 256, 32) / 8, floats(1, 256, 64) / 8, floats(1, 512)]
    yield Case("LSTM", [floats(16, 1, 32), *weights], {"hidden_size": 64})
    yield Case("LSTM", [floats(16, 16, 32), *weights], {"hidden_size": 64})
    weights = [floats(1, 192, 32) / 8, floats(1, 192, 64) / 8, floats(1, 384)]
    yield Case("GRU", [floats(16, 1, 32), *weights], {"hidden_size": 64})


def _quantised() -> Iterator[Case]:
    half, third, two = np.float32(0.05), np.float32(0.02), np.uint8(7)

    def unsigned(*shape: int) -> Array:
        return whole(*shape, kind="u1", high=256)

    def signed(*shape: int) -> Array:
        return whole(*shape, kind="i1", low=-127, high=128)

    yield Case("QuantizeLinear", [X, half, two], exact=False)
    yield Case("DequantizeLinear", [unsigned(16, 64, 64), half, two])
    yield Case("DynamicQuantizeLinear", [X], outputs=3, exact=False)
    yield Case("MatMulInteger", [unsigned(1, 512), signed(512, 512), two, np.int8(0)])
    yield Case("MatMulInteger", [unsigned(16, 512), signed(512, 512), two, np.int8(0)])
    yield Case("MatMulInteger", [unsigned(64, 512), unsigned(512, 512), two, two])
    more = [half, two, signed(512, 512), third, np.int8(0), np.float32(2), two]
    yield Case("QLinearMatMul", [unsigned(1, 512), *more], exact=False)
    yield Case("QLinearMatMul", [unsigned(64, 512), *more], exact=False)
    image, kernel = unsigned(1, 32, 32, 32), signed(32, 32, 3, 3)
    yield Case("ConvInteger", [image, kernel, two], {"pads": [1] * 4})
    more = [half, two, kernel, third, np.int8(0), np.float32(2), two, whole(32, low=-999, high=999)]
    yield Case("QLinearConv", [image, *more], {"pads": [1] * 4}, exact=False)
    more = [half, two, signed(32, 1, 3, 3), third, np.int8(0), np.float32(0.3), two]
    yield Case("QLinearConv", [image, *more], {"pads": [1] * 4, "group": 32}, exact=False)


def model(case: Case) -> bytes:
    """Of the one node."""
    names = [f"x{k}" if x is not None else "" for k, x in enumerate(case.operands)]
    inputs, constants = [], []
    for k, (name, x) in enumerate(zip(names, case.operands, strict=True)):
        if x is not None and k < case.fixed:
            kind = helper.np_dtype_to_tensor_dtype(np.asarray(x).dtype)
            inputs.append(helper.make_tensor_value_info(name, kind, np.shape(x)))
        elif x is not None:
            constants.append(numpy_helper.from_array(np.asarray(x), name))
    outs = [f"y{k}" for k in range(case.outputs)]
    node = helper.make_node(case.op, names, outs, **case.attrs)
    made = [helper.make_empty_tensor_value_info(name) for name in outs]
    graph = helper.make_graph([node], "one", inputs, made, constants)
    opsets = [helper.make_opsetid("", 24 if case.op == "Swish" else OPSET)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def apart(case: Case, found: Array, expected: Array) -> float:
    """How far an answer is from onnxruntime's: a share of the largest number there, or of the one step allowed."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        raise ValueError(f"{case.name}: {found.dtype}{list(found.shape)}; {expected.dtype}{list(expected.shape)} there")
    if found.dtype.kind == "f":
        scale = max(float(np.nanmax(np.abs(expected), initial=0)), 1e-30)
        return float(np.nanmax(np.abs(found.astype(np.float64) - expected), initial=0)) / scale
    most = float(np.abs(found.astype(np.int64) - expected.astype(np.int64)).max(initial=0))
    return most if case.exact else max(0.0, most - 1)


def measure(case: Case, seconds: float) -> dict[str, Any] | None:
    """Microseconds of both, or None where onnxruntime does not run the op. Raises ValueError for another answer."""
    import onnxruntime

    import hashinfer

    data, options = model(case), onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    try:
        theirs = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented:
        return None
    ours = hashinfer.InferenceSession(data, threads=1)
    feed = {f"x{k}": np.asarray(x) for k, x in enumerate(case.operands[: case.fixed])}
    for found, expected in zip(ours.run(None, feed), theirs.run(None, feed), strict=True):
        difference = apart(case, found, expected)
        if not difference < 1e-3:
            raise ValueError(f"{case.name}: the answers differ by {difference:.3g} of the largest")
    spent = alternate({"ours": lambda _: ours.run(None, feed), "theirs": lambda _: theirs.run(None, feed)}, seconds)
    us = {name: 1e6 * statistics.median(samples) for name, samples in spent.items()}
    return {"op": case.op, "case": case.name, "us": us, "times": us["ours"] / us["theirs"]}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help="these alone")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each case")
    parser.add_argument("--out", type=Path, help="write the table there as well")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows, missing = [], []
    for case in cases():
        if options.ops and case.op not in options.ops:
            continue
        row = measure(case, options.seconds)
        if row is None:
            missing.append(case.op)
        else:
            rows.append(row)
    rows.sort(key=lambda row: -row["times"])
    if options.json:
        print(json.dumps({"environment": environment(), "rows": rows, "not_in_onnxruntime": missing}, indent=1))
        return
    text = report(rows, missing)
    print(text, end="")
    if options.out is not None:
        with atomic_write(options.out) as file:
            file.write(text.encode())


def report(rows: Sequence[Mapping[str, Any]], missing: Sequence[str]) -> str:
    """The table, what is over MOST, what onnxruntime does not run, and where it was measured, as Markdown."""
    lines = [
        (row["case"], duration(row["us"]["ours"]), duration(row["us"]["theirs"]), f"{row['times']:.2f}") for row in rows
    ]
    over = [row["case"] for row in rows if row["times"] > MOST]
    seen = environment()
    versions = ", ".join(f"{name} {version}" for name, version in seen["versions"].items())
    where = f"{seen['cpu']}, kernels for {seen['kernels_use']}, Python {seen['python']}, {versions}"
    parts = [
        "Each native op as a model of one node, one thread, beside onnxruntime (`python -m bench.ops`).",
        "; ".join([f"Over {MOST:g} times onnxruntime's time: {len(over)} of {len(rows)} cases", *over]) + ".",
        table(("op", "hashinfer", "onnxruntime", "times its time"), lines),
        *([f"Not in onnxruntime: {', '.join(sorted(set(missing)))}."] if missing else []),
        f"Measured on: {where}.",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
