"""Single kernels under pytest-benchmark: `pytest bench`, with its options (-k, --benchmark-compare, ...)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bench.kernels import bound, options_for
from bench.nets import SCHEMES, Variant
from hashinfer.ops.matrix import HashedMatrix

SHAPES = ((784, 1000), (4096, 4096))
COMPRESSION = 64
ROWS = (1, 64)
SLOW_NS = 1e9
"""Calls that are estimated to take longer are no cases."""


def _matrix(scheme: str, block: int, shape: tuple[int, int]) -> HashedMatrix:
    fitted = Variant(scheme, block, COMPRESSION).fit(*shape, seed=1)
    return HashedMatrix(fitted, np.random.default_rng(0).standard_normal(fitted.buckets, np.float32))


def _cases() -> Iterator[Any]:
    for shape in SHAPES:
        for scheme, block in SCHEMES:
            matrix = _matrix(scheme, block, shape)
            for rows in ROWS:
                for name, emission in options_for(matrix, rows).items():
                    if emission.work < SLOW_NS:
                        label = Variant(scheme, block, COMPRESSION).label.replace(" ", "-")
                        id_ = f"{shape[0]}x{shape[1]}-{label}-{rows}-{name}"
                        yield pytest.param(scheme, block, shape, rows, name, id=id_)


@pytest.mark.parametrize(("scheme", "block", "shape", "rows", "kernel"), list(_cases()))
def test_kernel(
    benchmark: Callable[..., Any], scheme: str, block: int, shape: tuple[int, int], rows: int, kernel: str
) -> None:
    """One kernel over x [rows, shape[0]]; the outputs are finite."""
    matrix = _matrix(scheme, block, shape)
    x = np.random.default_rng(1).standard_normal((rows, shape[0]), np.float32)
    y = np.full((rows, shape[1]), np.nan, np.float32)
    run = bound(options_for(matrix, rows)[kernel], x, y)
    run(0)
    benchmark(run, 0)
    assert np.isfinite(y).all()
