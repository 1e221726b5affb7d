"""Kernels as they are emitted for targets with 32-bit addresses."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from hashinfer.errors import HashinferError, MemoryLimitError
from hashinfer.kernels.arguments import NO_LIMIT, float_argument
from hashinfer.model.read import read_model
from hashinfer.native.emit import lower as lower_module
from hashinfer.native.emit.lower import lower
from hashinfer.native.emit.narrow import narrow_ir, use_32_bits
from tests import nets

KERNELS = ("dense_row", "dyadic_row_f32", "dyadic_small_spectrum", "max_pool", "xxh32_row_f32", "xxh32_small_f32")
WIDE = re.compile(r"icmp \w+ i64|[us](?:div|rem)[a-z ]* i64|phi +i64|alloca i64")


def test_loops_indices_and_divisions_have_32_bits(monkeypatch):
    monkeypatch.setenv("NUMBA_OPT", "0")
    found = dict(narrow_ir(KERNELS))
    assert set(found) == set(KERNELS)
    for name, text in found.items():
        assert not WIDE.findall(text), name
        assert len(re.findall(r"icmp \w+ i32", text)) > 10, name


def test_what_fails_there_is_said(monkeypatch):
    monkeypatch.setenv("NUMBA_OPT", "3")
    with pytest.raises(HashinferError, match=r"code 2, saying: .*NUMBA_OPT=0"):
        list(narrow_ir(["dense_row"]))


def test_a_process_that_has_numba_keeps_its_width(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", sys)
    with pytest.raises(HashinferError, match="process of their own"):
        use_32_bits()


def invoked(model, bits, limit=2**30):
    return [o for o in lower(read_model(model.SerializeToString()), {}, limit, bits).operations if hasattr(o, "args")]


def test_arguments_and_tables_fit_the_target():
    """Rows of one image are without limit; a seed takes all 32 bits."""
    model = nets.single(nets.scheme("dyadic", 64, 40, 128, parameter=32, seed=2**32 - 1))
    wide, narrow = invoked(model, 64), invoked(model, 32)
    assert [o.kernel.name for o in wide] == [o.kernel.name for o in narrow]
    seen = 0
    for a, b in zip(wide, narrow, strict=True):
        for x, y in zip(a.args, b.args, strict=True):
            if not isinstance(x, int):
                continue
            assert -(2**31) <= y < 2**31
            assert y == 2**31 - 1 if x == NO_LIMIT else x == y
            seen += x == NO_LIMIT
    assert seen


@pytest.mark.parametrize(
    ("ops", "columns"),
    [
        (("Softmax", "LogSoftmax", "Softmax"), 600_000_000),
        (("Relu",), 3_000_000_000),
        (("Softmax", "Relu"), 1_200_000_000),
    ],
)
def test_memory_that_the_target_cannot_address_is_refused(ops, columns):
    names = ["x", *(f"v{k}" for k in range(len(ops) - 1)), "y"]
    nodes = [nets.node(op, [a], [b]) for op, a, b in zip(ops, names, names[1:], strict=False)]
    kind = (np.float32, [1, columns])
    with pytest.raises(MemoryLimitError):
        invoked(nets.model(nodes, {"x": kind}, {"y": kind}, {}), 32, 2**40)
    assert invoked(nets.model(nodes, {"x": kind}, {"y": kind}, {}), 64, 2**40)


def test_a_number_beyond_the_target_is_refused(monkeypatch):
    model = nets.single(nets.scheme("dyadic", 64, 40, 128, parameter=32))
    monkeypatch.setattr(lower_module, "NO_LIMIT", 2**63 - 1)
    assert invoked(model, 64)
    with pytest.raises(MemoryLimitError, match="32-bit target"):
        invoked(model, 32)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -3e-39, np.inf, 1e300, -1e300])
def test_floats_travel_as_the_bits_of_a_float32(value):
    bits = float_argument(float(value))
    assert -(2**31) <= bits < 2**31
    with np.errstate(over="ignore"):
        assert np.int32(bits).view(np.float32) == np.float32(value)
