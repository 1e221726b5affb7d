"""The table of op schemas says what onnx says."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest
from onnx import defs, helper

from hashinfer.model import schema
from hashinfer.model.schema import known_to_fit, table
from tests.schemas import table_of_onnx, takes_of


def fits(op: str, ins: list[str], outs: list[str], opset: int = 18, **attributes: object) -> bool:
    node = helper.make_node(op, ins, outs, **attributes)
    return known_to_fit(node, opset, {a.name: a for a in node.attribute})


def test_the_table_is_onnxs_at_every_opset() -> None:
    """As far as both know: another onnx than the one it was made from may know more, or fewer."""
    newest, ops = table()
    compared = 0
    for name, (since, takes) in ops.items():
        for opset in range(1, min(newest, defs.onnx_opset_version()) + 1):
            at = [each for version, each in zip(since, takes, strict=True) if version <= opset]
            if not at:
                with pytest.raises(defs.SchemaError):
                    defs.get_schema(name, opset, "")
            else:
                expected = json.loads(json.dumps(takes_of(defs.get_schema(name, opset, ""))))
                assert list(at[-1]) == expected, (name, opset)
                compared += 1
    assert compared > 2000


def test_the_table_has_every_op_once_for_what_it_takes() -> None:
    newest, ops = table()
    fresh = table_of_onnx()
    assert set(ops) <= set(fresh["ops"]) or fresh["opset"] < newest
    for since, takes in ops.values():
        assert sorted(since) == since
        assert all(a != b for a, b in pairwise(takes))


@pytest.mark.parametrize(
    ("expected", "case"),
    [
        (True, lambda: fits("Gemm", ["a", "b"], ["y"], alpha=1.0)),
        (True, lambda: fits("Gemm", ["a", "b", ""], ["y"])),
        (True, lambda: fits("Concat", list("abcdefgh"), ["y"], axis=0)),
        (False, lambda: fits("Concat", ["a", ""], ["y"], axis=0)),
        (False, lambda: fits("Concat", ["a"], ["y"])),
        (False, lambda: fits("Gemm", ["a"], ["y"])),
        (False, lambda: fits("Gemm", ["", "b"], ["y"])),
        (False, lambda: fits("Gemm", ["a", "b"], ["y", "z"])),
        (False, lambda: fits("Gemm", ["a", "b"], ["y"], alpha=1)),
        (False, lambda: fits("Gemm", ["a", "b"], ["y"], gamma=1.0)),
        (False, lambda: fits("Gemn", ["a", "b"], ["y"])),
        (False, lambda: fits("Gelu", ["a"], ["y"], opset=18)),
        (False, lambda: fits("Gemm", ["a", "b"], ["y"], opset=10_000)),
    ],
)
def test_nodes_that_fit_and_nodes_that_do_not(expected, case) -> None:
    assert case() is expected


def test_a_model_that_fits_needs_no_schemas_of_onnx() -> None:
    code = (
        "import onnx.defs, hashinfer\n"
        "def refused(*_): raise AssertionError('asked onnx')\n"
        "onnx.defs.get_schema = refused\n"
        "hashinfer.InferenceSession('models/mnist-dyadic-64x.hnet')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=schema.TABLE.parent.parent.parent)
