"""Kernels write their outputs and nothing beside them, whatever sizes are zero: outputs lie between guard numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashinfer.ops.base import Call, Operand
from hashinfer.ops.emission import NativeOp
from hashinfer.ops.hashed import HashedConv, HashedExpand, HashedLookup, HashedProduct
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.ops.product import Conv, Gemm, MatMul
from tests import naive, nets

F32 = np.float32
GUARD, ROOM = F32(12345), 4096
SIZE = st.integers(0, 5) | st.integers(14, 70)
SOME = st.integers(1, 5) | st.integers(14, 70)


def guarded(op: NativeOp, ins: list[Any], **attrs: Any) -> np.ndarray:
    """Run an op into guarded memory; returns the output."""
    call = Call(attrs, 20)
    (kind,) = op.infer(call, [None if x is None else Operand.of(x) for x in ins])
    memory = np.full(kind.size + 2 * ROOM, GUARD, F32)
    out = memory[ROOM : ROOM + kind.size].reshape(kind.shape)
    op.run(call, ins, [out])
    assert (memory[:ROOM] == GUARD).all()
    assert (memory[ROOM + kind.size :] == GUARD).all()
    return out.copy()


def values(*shape: int) -> np.ndarray:
    return nets.weights(int(np.prod(shape)), sum(shape)).reshape(shape)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(SIZE, SIZE, SIZE, SIZE)
def test_batched_matmul(batch: int, rows: int, inputs: int, outputs: int) -> None:
    a, b = values(batch, rows, inputs), values(batch, inputs, outputs)
    close(guarded(MatMul(), [a, b]), a @ b)
    close(guarded(MatMul(), [a, values(inputs, outputs)]), a @ values(inputs, outputs))


@settings(max_examples=40, deadline=None)
@given(SIZE, SIZE, SIZE, st.booleans())
def test_gemm(rows: int, inputs: int, outputs: int, transposed: bool) -> None:
    a, c = values(rows, inputs), values(outputs)
    b = values(outputs, inputs) if transposed else values(inputs, outputs)
    close(guarded(Gemm(), [a, b, c], transB=int(transposed)), a @ (b.T if transposed else b) + c)


@pytest.mark.parametrize("name", ["xxh32", "dyadic"])
@settings(max_examples=40, deadline=None)
@given(
    rows=SIZE,
    inputs=SOME,
    outputs=SOME,
    buckets=st.integers(1, 300),
    transposed=st.booleans(),
    block=st.integers(1, 20),
)
def test_hashed_products(
    name: str, rows: int, inputs: int, outputs: int, buckets: int, transposed: bool, block: int
) -> None:
    parameter = min(block, buckets, inputs * outputs) if name == "xxh32" else None
    scheme = nets.scheme(name, inputs, outputs, buckets, 5, parameter)
    matrix = HashedMatrix(scheme, nets.weights(scheme.buckets))
    w = naive.dense(matrix).T if transposed else naive.dense(matrix)
    x = values(rows, w.shape[0])
    close(guarded(HashedProduct(matrix, transposed), [x, values(w.shape[1])]), x @ w + values(w.shape[1]))
    close(guarded(HashedExpand(matrix), []), naive.dense(matrix))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), SOME, SOME, st.integers(1, 20))
def test_lookups(count: int, rows: int, cols: int, block: int) -> None:
    scheme = nets.scheme("xxh32", rows, cols, rows * cols, 5, min(block, rows * cols))
    matrix = HashedMatrix(scheme, nets.weights(scheme.buckets))
    ids = np.arange(count) % rows
    close(guarded(HashedLookup(matrix), [ids]), naive.dense(matrix)[ids])


@pytest.mark.parametrize("name", ["dense", "xxh32", "dyadic"])
@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("size", [(3, 3), (5, 4), (9, 12)])
def test_convolutions(name: str, batch: int, size: tuple[int, int]) -> None:
    x, bias = values(batch, 4, *size), values(18)
    if name == "dense":
        y = guarded(Conv(), [x, values(18, 4, 3, 3), bias])
        w = values(18, 4, 3, 3)
    else:
        scheme = nets.scheme(name, 36, 18, 200)
        matrix = HashedMatrix(scheme, nets.weights(scheme.buckets))
        y = guarded(HashedConv(matrix, (18, 4, 3, 3)), [x, None, bias])
        w = naive.dense(matrix).T.reshape(18, 4, 3, 3)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    close(y, np.einsum("nchwij,ocij->nohw", windows, w) + bias[:, None, None])
