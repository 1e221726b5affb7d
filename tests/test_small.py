"""The kernels that ISA `small` takes for dyadic products, on any CPU: held to what the others are held to."""

from __future__ import annotations

import numpy as np
import pytest

from hashinfer.kernels.isa import SMALL
from hashinfer.ops import hashed
from hashinfer.ops.base import Call
from hashinfer.ops.hashed import HashedConv, HashedProduct
from hashinfer.schemes import Dyadic
from tests import test_kernels as others

LARGE = [
    Dyadic(16 * 1024, 784, 1000, 1, 1024),
    Dyadic(1024, 1000, 10, 2, 1024),
    Dyadic(3 * 512, 700, 2, 3, 512),
    Dyadic(256, 300, 500, 4, 256),
    Dyadic(64, 40, 1, 5, 64),
]
"""Sums of 16, of 128 and of 64 floats an output; all stages; one output."""
DYADIC = [scheme for scheme in others.PRODUCTS if isinstance(scheme, Dyadic)] + LARGE


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed, "ISA", SMALL)


def test_the_plan_holds_no_spectrum():
    m = others.matrix(LARGE[0])
    (call,) = others.emission(HashedProduct(m), others.CALL, others.inputs(2, 784)).calls
    assert call.kernel.name == "dyadic_small_f32"
    assert "spectrum" not in call.args
    others.run(HashedProduct(m), others.CALL, others.inputs(2, 784))
    assert m.resident_bytes == m.w.nbytes


@pytest.mark.parametrize("dtype", others.DTYPES)
@pytest.mark.parametrize("scheme", DYADIC, ids=str)
def test_product(scheme, dtype):
    others.test_product(scheme, dtype, transposed=False)


@pytest.mark.parametrize("form", others.BIASES)
def test_bias_forms(form):
    others.test_bias_forms(LARGE[1], form, transposed=False)


@pytest.mark.parametrize("where", ["x", "w", "w with zeros in x", "bias"])
@pytest.mark.parametrize("odd", others.ODD)
@pytest.mark.parametrize("scheme", [s for s in others.ODD_SCHEMES if isinstance(s, Dyadic)], ids=str)
def test_nan_and_inf_stay_where_the_dense_product_has_them(scheme, where, odd):
    others.test_nan_and_inf_stay_where_the_dense_product_has_them(scheme, where, odd, transposed=False)


@pytest.mark.parametrize("scheme", [s for s in others.ODD_SCHEMES if isinstance(s, Dyadic)], ids=str)
@pytest.mark.parametrize("scales", others.SCALES, ids=str)
def test_extreme_scales(scheme, scales):
    others.test_extreme_scales(scheme, scales, transposed=False)
    others.test_rows_of_different_scales_do_not_meet(scheme, transposed=False)


@pytest.mark.parametrize("dtype", others.DTYPES)
@pytest.mark.parametrize("case", others.CONVOLUTIONS)
def test_convolution(case, dtype):
    others.test_convolution(case, "dyadic", dtype)


def test_some_convolution_goes_row_by_row():
    shape, weights, attributes = others.CONVOLUTIONS["whole image"]
    op = HashedConv(others.matrix(others.conv_scheme("dyadic", weights)), weights)
    (call,) = others.emission(op, Call(attributes, 20), np.zeros(shape, np.float32)).calls
    assert call.kernel.name == "dyadic_small_f32"
