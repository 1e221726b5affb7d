"""The table of op schemas says what onnx says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from onnx import defs, helper

from hashinfer.model import schema
from hashinfer.model.schema import known_to_fit, table, table_of_onnx


def fits(op: str, ins: list[str], outs: list[str], opset: int = 18, **attributes: object) -> bool:
    node = helper.make_node(op, ins, outs, **attributes)
    return known_to_fit(node, opset, {a.name: a for a in node.attribute})


def test_the_table_is_onnxs() -> None:
    """For the versions that both know: another onnx than the one it was made from may know more, or fewer."""
    newest, ops = table()
    fresh = json.loads(json.dumps(table_of_onnx()))
    known = min(newest, fresh["opset"])
    assert set(ops) <= set(fresh["ops"]) or fresh["opset"] < newest
    compared = 0
    for name in set(ops) & set(fresh["ops"]):
        since, takes = ops[name]
        theirs = dict(zip(*fresh["ops"][name], strict=True))
        for version, mine in zip(since, takes, strict=True):
            if version <= known and version in theirs:
                assert list(mine) == theirs[version], (name, version)
                compared += 1
    assert compared > 500


def test_versions_are_picked_as_onnx_picks_them() -> None:
    newest, ops = table()
    for name, (since, _) in ops.items():
        for opset in range(1, min(newest, defs.onnx_opset_version()) + 1):
            at = [v for v in since if v <= opset]
            if not at:
                with pytest.raises(defs.SchemaError):
                    defs.get_schema(name, opset, "")
            else:
                assert defs.get_schema(name, opset, "").since_version == at[-1]


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
