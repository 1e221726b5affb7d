"""Values that outlive the step that made them: none may be overwritten, or be the caller's own array."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator

import hashinfer
from tests import nets
from tests.nets import node

F32 = np.float32


def agrees(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    session = hashinfer.InferenceSession(model.SerializeToString())
    first = session.run(None, feeds)
    kept = [np.array(v) for v in first]
    expected = ReferenceEvaluator(model).run(None, feeds)
    session.run(None, {k: np.zeros_like(v) if v.dtype.kind == "f" else v for k, v in feeds.items()})
    for value, copy, reference in zip(first, kept, expected, strict=True):
        np.testing.assert_array_equal(value, copy, err_msg="a later run changed an earlier result")
        np.testing.assert_allclose(value, reference, rtol=1e-5, atol=1e-5)
        for given in feeds.values():
            assert not np.shares_memory(value, given)
        assert value.flags.writeable
    return first


def chain(last: str, *middle: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Something in the arena, then `middle` nodes on it, then enough arena steps to reuse its room, then a sum."""
    return [
        node("Neg", ["x"], ["a"]),
        *middle,
        *(node("Exp" if k % 2 else "Tanh", ["x" if k == 0 else f"t{k - 1}"], [f"t{k}"]) for k in range(6)),
        node("Flatten", [last], ["flat"], axis=0),
        node("Flatten", ["t5"], ["other"], axis=0),
        node("Add", ["flat", "other"], ["y"]),
    ]


MIDDLE = {
    "a shape from data": [node("Reshape", ["a", "s"], ["b"])],
    "an identity in a branch": [
        helper.make_node(
            "If",
            ["yes"],
            ["b"],
            "branch",
            then_branch=helper.make_graph([], "then", [], [helper.make_tensor_value_info("a", 1, None)]),
            else_branch=helper.make_graph(
                [node("Identity", ["a"], ["e"])], "else", [], [helper.make_tensor_value_info("e", 1, None)]
            ),
        )
    ],
    "a sequence": [
        node("SequenceConstruct", ["a", "x"], ["q"]),
        node("Constant", [], ["zero"], value_int=0),
        node("SequenceAt", ["q", "zero"], ["b"]),
    ],
}


@pytest.mark.parametrize("yes", [True, False])
@pytest.mark.parametrize("case", MIDDLE)
def test_dynamic_steps_keep_no_view_of_the_arena(case: str, yes: bool) -> None:
    made = nets.model(
        chain("b", *MIDDLE[case]), {"x": (F32, [4, 6]), "s": (np.int64, [2]), "yes": (bool, [])}, {"y": (F32, None)}, {}
    )
    agrees(made, {"x": nets.weights(24).reshape(4, 6), "s": np.array([6, 4]), "yes": np.array(yes)})


PASSED_ON = {
    "the input": ([node("Neg", ["x"], ["n"])], ["x", "n"]),
    "the input under another shape": ([node("Flatten", ["x"], ["y"])], ["y"]),
    "a constant": ([node("Neg", ["x"], ["n"])], ["c", "n"]),
    "one value twice": ([node("Neg", ["x"], ["n"]), node("Identity", ["n"], ["m"])], ["n", "m"]),
    "the input through the reference": ([node("Reshape", ["x", "s"], ["y"])], ["y"]),
}


@pytest.mark.parametrize("case", PASSED_ON)
def test_outputs_are_arrays_of_their_own(case: str) -> None:
    nodes, names = PASSED_ON[case]
    made = nets.model(
        nodes, {"x": (F32, [4, 6]), "s": (np.int64, [2])}, dict.fromkeys(names, (F32, None)), {"c": nets.weights(5)}
    )
    first = agrees(made, {"x": nets.weights(24).reshape(4, 6), "s": np.array([6, 4])})
    assert not any(np.shares_memory(a, b) for k, a in enumerate(first) for b in first[:k])
