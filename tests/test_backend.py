"""onnx's own backend test suite, all of it but what onnx_exclusions.toml names; and the Backend interface."""

from __future__ import annotations

import re
import tomllib
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from hashinfer import backend
from hashinfer.errors import InputError, MemoryLimitError, ModelError, OpError, UnsupportedError
from tests import nets
from tests.nets import node

F32 = np.float32
EXCLUSIONS = tomllib.loads((Path(__file__).parent / "onnx_exclusions.toml").read_text()).get("exclusion", [])


class EveryModel(backend.HashinferBackend):
    """Says of no model that it is not compatible, as that would skip its test."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:  # noqa: ARG003
        return True


def onnx_suite() -> dict[str, Any]:
    """onnx's test cases for the CPU, by name; what is excluded is skipped with its reason, or has to fail."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test import BackendTest

        cases = BackendTest(EveryModel, __name__).test_cases
    for case in cases.values():
        case.pytestmark = [pytest.mark.onnx_suite, pytest.mark.filterwarnings("ignore")]
        for name in [name for name in vars(case) if name.startswith("test_")]:
            if not name.endswith("_cpu"):
                delattr(case, name)
                continue
            for exclusion in EXCLUSIONS:
                if re.fullmatch(exclusion["pattern"], name.removesuffix("_cpu")):
                    mark = unittest.expectedFailure if exclusion.get("fails") else unittest.skip(exclusion["reason"])
                    setattr(case, name, mark(vars(case)[name]))
    return dict(cases)


SUITE = onnx_suite()
globals().update(SUITE)


@pytest.fixture(scope="module", autouse=True)
def onnx_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the suite puts models and their data: not in the user's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_HOME", str(tmp_path_factory.mktemp("onnx")))
        yield


def test_every_exclusion_names_tests_and_a_reason():
    names = [name.removesuffix("_cpu") for case in SUITE.values() for name in vars(case) if name.startswith("test_")]
    assert len(names) > 1500
    for exclusion in EXCLUSIONS:
        assert len(exclusion["reason"]) > 10
        assert any(re.fullmatch(exclusion["pattern"], name) for name in names), exclusion


# ------------------------------------------------------------------------------------------------------- the interface


def add_model() -> onnx.ModelProto:
    return nets.model(
        [node("Add", ["a", "b"], ["sum"]), node("Sub", ["a", "b"], ["difference"])],
        {"a": (F32, ["N"]), "b": (F32, ["N"])},
        {"sum": (F32, ["N"]), "difference": (F32, ["N"])},
        {},
    )


A, B = np.array([1, 2], F32), np.array([3, 5], F32)


@pytest.mark.parametrize("inputs", [[A, B], (A, B), {"b": B, "a": A}], ids=["list", "tuple", "dict"])
def test_a_prepared_model_runs(inputs):
    prepared = backend.prepare(add_model(), threads=1)
    assert prepared.session.threads == 1
    for _ in range(2):
        outputs = prepared.run(inputs)
        assert isinstance(outputs, tuple)
        assert outputs[0].tolist() == outputs["sum"].tolist() == [4, 7]
        assert outputs.difference.tolist() == [-2, -3]
    assert backend.run_model(add_model(), inputs)[1].tolist() == [-2, -3]


def test_hashed_models_run_as_in_a_session():
    model, x = nets.hashed_mlp([9, 8, 7], "dyadic", 2), nets.weights(18).reshape(2, 9)
    prepared = backend.prepare(model)
    assert np.array_equal(prepared.run(x)[0], prepared.session(x))
    assert backend.prepare(model.SerializeToString()).run([x])[0].shape == (2, 7)


def test_devices():
    assert backend.supports_device("CPU")
    assert backend.supports_device("CPU:0")
    assert not backend.supports_device("CUDA")
    assert not backend.supports_device("CUDA:1")
    with pytest.raises(InputError, match="device is 'CUDA'; expected 'CPU'"):
        backend.prepare(add_model(), "CUDA")


def test_errors_are_the_sessions():
    prepared = backend.prepare(add_model(), max_memory=4096)
    with pytest.raises(InputError, match="1 inputs are given; the model has 2: a, b"):
        prepared.run([A])
    with pytest.raises(InputError, match="no input 'c'"):
        prepared.run({"c": A})
    with pytest.raises(MemoryLimitError):
        prepared.run([np.zeros(9999, F32), np.zeros(9999, F32)])
    with pytest.raises(ModelError, match="no graph"):
        backend.prepare(onnx.ModelProto(ir_version=9))
    unknown = nets.model([node("Frobnicate", ["x"], ["y"])], {"x": (F32, [1])}, {"y": (F32, [1])}, {})
    with pytest.raises(UnsupportedError, match="no such op"):
        backend.prepare(unknown)
    assert backend.is_compatible(add_model())
    assert not backend.is_compatible(unknown)
    assert not backend.is_compatible(add_model(), "CUDA")


def test_one_node():
    assert backend.run_node(node("Add", ["a", "b"], ["y"]), [A, B])[0].tolist() == [4, 7]
    assert backend.run_node(node("Mul", ["a", "a"], ["y"]), {"a": A})[0].tolist() == [1, 4]
    assert backend.run_node(node("Clip", ["x", "", "high"], ["y"]), [B, np.array(4, F32)])[0].tolist() == [3, 4]
    values, indices = backend.run_node(node("TopK", ["x", "k"], ["v", "i"]), [B, np.array([1])])
    assert (values.tolist(), indices.tolist()) == ([5], [1])
    old = node("Softmax", ["x"], ["y"])
    cube = np.zeros((1, 2, 4), F32)
    assert backend.run_node(old, [cube], opset_version=11)[0][0, 0, 0] == 1 / 8
    assert backend.run_node(old, [cube])[0][0, 0, 0] == 1 / 4
    binarizer = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml", threshold=4.0)
    assert backend.run_node(binarizer, [B])[0].tolist() == [0, 1]
    length = backend.run_node(node("SequenceLength", ["s"], ["n"]), [[A, B, A]])[0]
    assert (int(length), length.dtype) == (3, np.int64)
    text = backend.run_node(node("StringConcat", ["a", "b"], ["y"]), [np.array(["x"]), np.array(["y"])])[0]
    assert text.tolist() == ["xy"]
    with pytest.raises(InputError, match="1 inputs are given; the node names 2: a, b"):
        backend.run_node(node("Add", ["a", "b"], ["y"]), [A])
    with pytest.raises(ModelError, match="3 inputs; expected 2"):
        backend.run_node(node("Add", ["a", "b", "c"], ["y"]), [A, B, A])


# ------------------------------------------------------------------------------ ops that came in for the suite's sake


def flex(**attributes: Any) -> onnx.NodeProto:
    return helper.make_node("FlexAttention", ["q", "k", "v"], ["y"], domain="ai.onnx.preview", **attributes)


def graph_of(op_type: str, outputs: int = 1) -> onnx.GraphProto:
    made = [node(op_type, ["s"], [f"t{k}"]) for k in range(outputs)]
    return helper.make_graph(
        made, "g", [onnx.ValueInfoProto(name="s")], [onnx.ValueInfoProto(name=f"t{k}") for k in range(outputs)]
    )


def heads(count: int, rows: int, size: int, seed: int = 0, dtype: Any = F32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, count, rows, size)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float16, F32, np.float64])
def test_flex_attention_shares_heads_and_runs_its_graphs(dtype):
    q, k, v = heads(4, 3, 5, 0, dtype), heads(2, 6, 5, 1, dtype), heads(2, 6, 7, 2, dtype)
    (y,) = backend.run_node(flex(score_mod=graph_of("Neg"), prob_mod=graph_of("Sqrt"), scale=0.3), [q, k, v])
    wide = [x.astype(np.float64) for x in (q, np.repeat(k, 2, 1), np.repeat(v, 2, 1))]
    scores = -0.3 * wide[0] @ wide[1].transpose(0, 1, 3, 2)
    shares = np.exp(scores) / np.exp(scores).sum(3, keepdims=True)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, np.sqrt(shares) @ wide[2], atol=2e-2 if dtype == np.float16 else 1e-5)


FLEX_ERRORS: dict[str, tuple[list[np.ndarray], dict[str, Any], str]] = {
    "rank": ([heads(1, 2, 3)[0], heads(1, 2, 3), heads(1, 2, 3)], {}, "expected rank 4"),
    "sizes": ([heads(1, 2, 3), heads(1, 2, 4), heads(1, 2, 3)], {}, "do not go together"),
    "heads": ([heads(3, 2, 3), heads(2, 2, 3), heads(2, 2, 3)], {}, "3 heads, K 2 of 2 keys; expected a divisor"),
    "graph": ([heads(1, 2, 3)] * 3, {"score_mod": graph_of("Neg", 2)}, "1 inputs and 2 outputs; expected one each"),
    "shape": ([heads(1, 2, 3)] * 3, {"prob_mod": graph_of("Shape")}, "its prob_mod makes shape"),
}


@pytest.mark.parametrize("case", FLEX_ERRORS)
def test_flex_attention_refuses(case):
    inputs, attributes, says = FLEX_ERRORS[case]
    with pytest.raises(OpError, match=f"FlexAttention node '.*{says}"):
        backend.run_node(flex(**attributes), inputs)


def test_flex_attention_within_its_memory():
    q = np.ones((1, 1, 4000, 1), F32)
    with pytest.raises(MemoryLimitError, match="its scores take"):
        backend.run_node(flex(), [q, q, q], max_memory=1 << 20)


def old_scan(inputs: int = 1, **attributes: Any) -> onnx.NodeProto:
    """Sums along a sequence, as opset 8 wrote it."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", ["sum", "next"], ["out"]), node("Identity", ["out"], ["each"])],
        "body",
        [value("sum", 1, [2]), value("next", 1, [2])],
        [value("out", 1, [2]), value("each", 1, [2])],
    )
    names = ["lengths", "start", "x"] if attributes.pop("with_lengths", False) else ["", "start", "x"]
    return node("Scan", names, ["last", "all"], num_scan_inputs=inputs, body=body, **attributes)


def test_scan_of_opset_8():
    start, x = np.zeros((2, 2), F32), np.arange(12, dtype=F32).reshape(2, 3, 2)
    last, every = backend.run_node(old_scan(), [start, x], opset_version=8)
    assert np.array_equal(last, x.sum(1))
    assert np.array_equal(every, x.cumsum(1))
    last, every = backend.run_node(old_scan(with_lengths=True), [np.array([1, 3]), start, x], opset_version=8)
    assert np.array_equal(last, [x[0, 0], x[1].sum(0)])
    assert np.array_equal(every, [[x[0, 0], [0, 0], [0, 0]], *x[1:].cumsum(1)])
    last, every = backend.run_node(old_scan(directions=[1]), [start, x], opset_version=8)
    assert np.array_equal(every, x[:, ::-1].cumsum(1))
    with pytest.raises(OpError, match="batches of"):
        backend.run_node(old_scan(), [start[:1], x], opset_version=8)


def test_optionals():
    """An optional holds a value as it is, or nothing."""
    model = nets.model(
        [
            node("Optional", ["x"], ["full"]),
            node("OptionalHasElement", ["full"], ["has"]),
            node("OptionalGetElement", ["full"], ["y"]),
        ],
        {"x": (F32, [2])},
        {"has": (np.bool_, []), "y": (F32, [2])},
        {},
    )
    has, y = backend.run_model(model, [A])
    assert bool(has)
    assert np.array_equal(y, A)


def test_models_of_old_opsets_are_converted():
    """Broadcasting by an attribute, and a slope for each channel, as they were before opset 7."""
    add = helper.make_node("Add", ["x", "b"], ["s"], broadcast=1)
    graph = helper.make_graph(
        [add, node("PRelu", ["s", "slope"], ["y"])],
        "old",
        [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 2, 3]), ("b", [3]), ("slope", [2]))],
        [helper.make_tensor_value_info("y", 1, [1, 2, 3])],
        [helper.make_tensor("b", 1, [3], [1.0, -9.0, 0.0]), helper.make_tensor("slope", 1, [2], [3.0, 0.5])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 6)], ir_version=3)
    (y,) = backend.run_model(model, [np.ones((1, 2, 3), F32)])
    assert y.tolist() == [[[2, -24, 1], [2, -4, 1]]]
    assert [o.version for o in model.opset_import] == [6]
    with pytest.raises(UnsupportedError, match="opset is 6"):
        backend.prepare(model.SerializeToString())
