"""The kernels that ISAs `small` and `integer` take for rows, on any CPU."""

from __future__ import annotations

import numpy as np
import pytest

from hashinfer.kernels.isa import INTEGER, SMALL
from hashinfer.ops import hashed
from hashinfer.ops.base import Call
from hashinfer.ops.hashed import HashedConv, HashedProduct
from hashinfer.schemes import Dyadic, Xxh32
from tests import naive
from tests import test_kernels as others

LARGE = [
    Dyadic(16 * 1024, 784, 1000, 1, 1024),
    Dyadic(1024, 1000, 10, 2, 1024),
    Dyadic(3 * 512, 700, 2, 3, 512),
    Dyadic(256, 300, 500, 4, 256),
    Dyadic(64, 40, 1, 5, 64),
]
"""Sums of 8 and of 64 floats an output, all stages, one output."""
XXH32 = [scheme for scheme in others.PRODUCTS if isinstance(scheme, Xxh32)]
DYADIC = [scheme for scheme in others.PRODUCTS if isinstance(scheme, Dyadic)] + LARGE


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed, "ISA", SMALL)
    monkeypatch.setattr(hashed, "SCALAR", True)


def product(scheme, dtype):
    return HashedProduct(others.matrix(scheme, dtype)), others.CALL, others.inputs(2, scheme.rows)


def chosen(m, inputs: int) -> str:
    (call,) = others.emission(HashedProduct(m), others.CALL, others.inputs(2, inputs)).calls
    return call.kernel.name


@pytest.mark.parametrize("dtype", others.DTYPES)
def test_there_is_one_large_constant(dtype):
    m = others.matrix(LARGE[0], dtype)
    (call,) = others.emission(HashedProduct(m), others.CALL, others.inputs(2, 784)).calls
    made = [a() if callable(a) else a for a in call.args.values()]
    large = [a for a in made if isinstance(a, np.ndarray) and a.size >= m.w.size]
    assert len(large) == 1
    assert large[0].nbytes == m.w.nbytes


def test_the_spectrum_counts_as_weights():
    m = others.matrix(LARGE[0])
    op = HashedProduct(others.HashedMatrix(m.scheme, m.w))
    kind, size = hashed.spectrum_held(op)
    before = op.matrix.resident_bytes
    others.run(op, others.CALL, others.inputs(2, 784))
    assert (kind, size) == ("bare", op.matrix.resident_bytes - before)
    assert size == m.w.nbytes


def test_the_spectrum_stands_in_for_weights_that_it_gives_back_with_their_signs():
    scheme, w = Dyadic(512, 64, 130, 3, 64), others.stored(512, "float32")
    assert chosen(others.HashedMatrix(scheme, w), 64) == "dyadic_small_spectrum"
    m = others.HashedMatrix(scheme, w)
    back = m.bare_spectrum @ naive.hadamard_matrix(64) / 64
    np.testing.assert_allclose(back.reshape(-1), w, atol=1e-6)
    for tiny in (0.0, 1e-9, -1e-9):
        spoiled = w.copy()
        spoiled[70] = tiny
        assert chosen(others.HashedMatrix(scheme, spoiled), 64) == "dyadic_small_f32"


def test_a_spectrum_of_many_groups_is_made_a_few_at_a_time():
    scheme, w = Dyadic(300 * 512, 512, 300, 3, 512), others.stored(300 * 512, "float32").copy()
    w[np.abs(w) < 1e-3] = 1e-3
    m = others.HashedMatrix(scheme, w)
    assert m.survives
    groups = w.reshape(300, 512).astype(np.float64)
    np.testing.assert_allclose(m.bare_spectrum, groups @ naive.hadamard_matrix(512), rtol=1e-6, atol=1e-4)
    w[-1] = 0
    assert not others.HashedMatrix(scheme, w).survives
    narrow = others.HashedMatrix(scheme, others.stored(300 * 512, "int8"))
    norms = np.linalg.norm(narrow.w.reshape(300, 512).astype(np.float64), axis=1)
    np.testing.assert_array_equal(narrow.norms, np.ceil(np.log2(norms)))


def test_a_zero_among_the_weights_meets_infinity():
    scheme, w = Dyadic(64, 32, 64, 3, 32), others.stored(64, "float32").copy()
    w[5] = 0.0
    m, x = others.HashedMatrix(scheme, w), others.inputs(3, 32)
    x[1, 4] = np.inf
    y, expected = others.run(HashedProduct(m), others.CALL, x), naive.matmul(x, others.virtual(m))
    assert np.isnan(expected).any()
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.array_equal(np.isinf(y), np.isinf(expected))
    np.testing.assert_allclose(y[[0, 2]], expected[[0, 2]], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", others.DTYPES)
@pytest.mark.parametrize("scheme", DYADIC + XXH32, ids=str)
def test_product(scheme, dtype):
    kinds = {call.kernel.name for call in others.emission(*product(scheme, dtype)).calls}
    m = others.matrix(scheme, dtype)
    spectral = m.survives
    assert kinds == {f"{scheme.name}_small_{'spectrum' if spectral else m.suffix}"}
    others.test_product(scheme, dtype, transposed=False)


@pytest.mark.parametrize("scheme", LARGE, ids=str)
def test_product_of_a_weight_vector_with_a_zero(scheme):
    w, x = others.stored(scheme.buckets, "float32").copy(), others.inputs(3, scheme.rows)
    w[3] = 0.0
    m = others.HashedMatrix(scheme, w)
    assert chosen(m, scheme.rows) == "dyadic_small_f32"
    y, expected = others.run(HashedProduct(m), others.CALL, x), naive.matmul(x, others.virtual(m))
    assert (np.abs(y - expected) <= others.transform_bound(scheme, w, x)).all()


@pytest.mark.parametrize("form", others.BIASES)
@pytest.mark.parametrize("scheme", [LARGE[1], XXH32[3]], ids=str)
def test_bias_forms(form, scheme):
    others.test_bias_forms(scheme, form, transposed=False)


@pytest.mark.parametrize("where", ["x", "w", "w with zeros in x", "bias"])
@pytest.mark.parametrize("odd", others.ODD)
@pytest.mark.parametrize("scheme", others.ODD_SCHEMES, ids=str)
def test_nan_and_inf_stay_where_the_dense_product_has_them(scheme, where, odd):
    others.test_nan_and_inf_stay_where_the_dense_product_has_them(scheme, where, odd, transposed=False)


@pytest.mark.parametrize("scheme", others.ODD_SCHEMES, ids=str)
@pytest.mark.parametrize("scales", others.SCALES, ids=str)
def test_extreme_scales(scheme, scales):
    others.test_extreme_scales(scheme, scales, transposed=False)
    others.test_rows_of_different_scales_do_not_meet(scheme, transposed=False)


@pytest.mark.parametrize("dtype", others.DTYPES)
@pytest.mark.parametrize("case", others.CONVOLUTIONS)
def test_convolution(case, dtype):
    others.test_convolution(case, "dyadic", dtype)


def test_convolutions_go_row_by_row():
    shape, weights, attributes = others.CONVOLUTIONS["plain"]
    op = HashedConv(others.matrix(others.conv_scheme("dyadic", weights)), weights)
    (call,) = others.emission(op, Call(attributes, 20), np.zeros(shape, np.float32)).calls
    assert call.kernel.name == "dyadic_small_spectrum"


# ---------------------------------------------------------------------------------------------------------- in integers


@pytest.fixture
def integer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashed, "ISA", INTEGER)
    monkeypatch.setattr(hashed, "SCALAR", True)


def integer_bound(m, x: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """What kernels/dyadic_integer.py states, and the last rounding."""
    scheme, scale = m.scheme, float(np.float32(m.scale))
    largest = np.abs(x).max(1, keepdims=True).astype(np.float64)
    above = 2.0 ** (np.floor(np.log2(np.where(largest > 0, largest, 1))) + 1)
    bits = min(20, 30 - int(np.ceil(np.log2(scheme.rows))))
    rounded = above * 2.0 ** -(bits + 1) * np.abs(dense).sum(0)
    signs = 1.0 - 2.0 * scheme.row_negative(np.arange(scheme.rows, dtype=np.uint64)).astype(float)
    u = np.zeros((len(x), scheme.width))
    for i in range(scheme.rows):
        u[:, i % scheme.width] += signs[i] * x[:, i]
    norms = np.linalg.norm(m.w.astype(np.float64).reshape(-1, scheme.width), axis=1)
    of_column = norms[np.arange(scheme.cols) % scheme.groups]
    halved = scale * 2.0**-28 * scheme.width * np.linalg.norm(u, axis=1)[:, None] * of_column
    return 1.01 * (rounded + halved) + 4 * others.EPS * np.abs(naive.matmul(x, dense))


@pytest.mark.parametrize("scheme", DYADIC, ids=str)
def test_int8_products_in_integers(integer, scheme):
    m = others.matrix(scheme, "int8")
    dense = others.virtual(m)
    for rows in (1, 5):
        x = others.inputs(rows, scheme.rows) * np.geomspace(1e-9, 1e9, rows).astype(np.float32)[:, None]
        (call,) = others.emission(HashedProduct(m), others.CALL, x).calls
        assert call.kernel.name == "dyadic_integer_i8"
        others.check(others.run(HashedProduct(m), others.CALL, x), naive.matmul(x, dense), integer_bound(m, x, dense))


def test_whole_numbers_are_exact_in_integers(integer):
    """Weights, inputs and units that nothing has to be rounded for."""
    scheme = Dyadic(128, 30, 50, 3, 32)
    w = np.random.default_rng(0).integers(-3, 4, scheme.buckets).astype(np.int8)
    m = others.HashedMatrix(scheme, w, 1.0)
    x = np.random.default_rng(1).integers(-1, 2, (4, 30)).astype(np.float32)
    expected = naive.matmul(x, others.virtual(m))
    assert np.array_equal(others.run(HashedProduct(m), others.CALL, x), expected)


@pytest.mark.parametrize("odd", others.ODD)
def test_odd_inputs_go_directly_in_integers(integer, odd):
    m = others.matrix(Dyadic(512, 64, 130, 3, 64), "int8")
    dense = others.virtual(m)
    x = others.spoiled(others.inputs(3, 64), *others.ODD[odd])
    y, expected = others.run(HashedProduct(m), others.CALL, x), naive.matmul(x, dense)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.array_equal(np.isinf(y), np.isinf(expected))


@pytest.mark.parametrize("factor", [1e-30, 1e30, 0.0])
def test_extreme_scales_in_integers(integer, factor):
    m = others.matrix(Dyadic(512, 64, 130, 3, 64), "int8")
    dense, x = others.virtual(m), others.inputs(3, 64) * np.float32(factor)
    others.check(
        others.run(HashedProduct(m), others.CALL, x), naive.matmul(x, dense), others.elementwise_bound(x, dense)
    )


@pytest.mark.parametrize("case", others.CONVOLUTIONS)
def test_convolutions_in_integers(integer, case):
    shape, weights, attributes = others.CONVOLUTIONS[case]
    m = others.matrix(others.conv_scheme("dyadic", weights), "int8")
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    kind = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1} | attributes
    dense = others.virtual(m).T.reshape(weights)
    op = HashedConv(m, weights)
    chosen = {call.kernel.name for call in others.emission(op, Call(attributes, 20), x).calls}
    assert chosen == {"pixel_block_i8" if "group" in attributes else "dyadic_integer_i8"}
    y, expected = others.run(op, Call(attributes, 20), x), naive.conv2d(x, dense, **kind)
    np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max(initial=1))


def test_large_layers_stay_in_floats(integer):
    m = others.matrix(Dyadic(2**15, 20, 30, 3, 2**15), "int8")
    (call,) = others.emission(HashedProduct(m), others.CALL, others.inputs(1, 20)).calls
    assert call.kernel.name == "dyadic_small_i8"


@pytest.mark.parametrize(("values", "expected"), [([0, 0], 0), ([1, 0], 0), ([1, 1], 1), ([-127, 127], 8), ([4, 0], 2)])
def test_norms_in_bits(values, expected):
    w = np.array(values, np.int8)
    assert others.HashedMatrix(Dyadic(2, 2, 2, 1, 2), w, 1.0).norms.tolist() == [expected]


def test_a_scale_that_is_hardly_normal(integer):
    """The outputs are, though the unit of the integers times the scale is not."""
    scheme = Dyadic(512, 64, 130, 3, 64)
    m = others.HashedMatrix(scheme, others.stored(512, "int8"), 2.0**-100)
    x, dense = others.inputs(3, 64) * np.float32(2.0**-33), others.virtual(m)
    others.check(others.run(HashedProduct(m), others.CALL, x), naive.matmul(x, dense), integer_bound(m, x, dense))
