"""Every kernel and device function against readable float64 loops, with the error bounds that their modules state."""

from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hashinfer.errors import OpError
from hashinfer.kernels import blocks, dyadic, hashing, intrinsics
from hashinfer.kernels.arguments import ACTIVATIONS, activate
from hashinfer.kernels.hadamard import hadamard
from hashinfer.kernels.isa import FUSES, INTEGER, ISA, RADIX, SCALAR
from hashinfer.kernels.jit import device
from hashinfer.ops import hashed
from hashinfer.ops.base import Call, Operand
from hashinfer.ops.convolution import Geometry
from hashinfer.ops.emission import Buffer, Emission, NativeOp
from hashinfer.ops.hashed import HashedConv, HashedExpand, HashedLookup, HashedProduct, candidates
from hashinfer.ops.matrix import HashedMatrix, spectrum_size
from hashinfer.ops.product import Conv, Epilogue, Gemm, MatMul, Rows, conv_rows
from hashinfer.schemes import Dyadic, Scheme, Xxh32
from hashinfer.schemes.bits import fmix32
from tests import naive
from tests.naive import EPS

CALL = Call({}, 20)
DTYPES = ("float32", "float16", "int8")
DYADIC_ROW = "dyadic_small" if SCALAR else "dyadic_row"
by_vectors = pytest.mark.skipif(SCALAR, reason="this ISA has one kernel for rows, without spectrum and choice")
ROWS = (1, 2, 7, 17, 33, 70)

PRODUCTS: list[Scheme] = [
    Xxh32(50, 37, 29, 1, 1),
    Xxh32(1, 5, 7, 2, 1),
    Xxh32(40, 33, 70, 3, 3),
    Xxh32(90, 130, 100, 4, 16),
    Xxh32(60, 20, 17, 2**32 - 1, 40),
    Xxh32(20, 4, 300, 5, 20),
    Dyadic(256, 100, 90, 1, 16),
    Dyadic(16, 100, 30, 2, 16),
    Dyadic(512, 64, 130, 3, 64),
    Dyadic(128, 70, 60, 2**32 - 1, 128),
    Dyadic(1, 5, 7, 4, 1),
    Dyadic(3, 9, 11, 5, 1),
    Dyadic(2 * 19, 31, 90, 6, 2),
    Dyadic(32 * 21, 30, 100, 7, 32),
    Dyadic(8, 40, 60, 8, 8),
]
"""Block 1, 3, 16 and above cols; width below, at and above the inputs; K = 1; more than one chunk of groups."""


@cache
def stored(count: int, dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == "int8":
        return rng.integers(-127, 128, count).astype(np.int8)
    return rng.standard_normal(count).astype(dtype)


def matrix(scheme: Scheme, dtype: str = "float32", w: np.ndarray | None = None) -> HashedMatrix:
    w = stored(scheme.buckets, dtype) if w is None else w
    return HashedMatrix(scheme, w, 0.013 if w.dtype == np.int8 else 1.0)


@cache
def unit_virtual(scheme: Scheme, dtype: str) -> np.ndarray:
    return naive.virtual(scheme, stored(scheme.buckets, dtype).astype(np.float64))


def virtual(m: HashedMatrix) -> np.ndarray:
    """W in float64."""
    values = m.w.view(np.float16) if m.w.dtype == np.uint16 else m.w
    return naive.virtual(m.scheme, values.astype(np.float64)) * float(np.float32(m.scale))


def run(op: NativeOp, call: Call, *ins: np.ndarray | None) -> np.ndarray:
    """The op's first output, into an array that is full of something else before."""
    kind = op.infer(call, [None if x is None else Operand.of(x) for x in ins])[0]
    out = np.full(kind.shape, 77, kind.dtype)
    op.run(call, list(ins), [out])
    return out


def emission(op: NativeOp, call: Call, *ins: np.ndarray | None):
    operands = [None if x is None else Operand.of(x) for x in ins]
    return op.emit(call, operands, op.infer(call, operands))


def run_emission(made: Emission, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What one of several candidates computes, alone."""

    class Fixed(HashedProduct):
        def emit(self, call, ins, outs):
            return made

    out = np.full(shape, 77, np.float32)
    Fixed.__new__(Fixed).run(CALL, [x], [out])
    return out


def inputs(rows: int, count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, count)).astype(np.float32)


def elementwise_bound(x: np.ndarray, dense: np.ndarray) -> np.ndarray:
    """inputs eps sum |x| |W|, and one rounding more for the scale of stored weights."""
    return (x.shape[-1] + 2) * EPS * naive.matmul(np.abs(x), np.abs(dense)) + x.shape[-1] * 2.0**-149


def transform_bound(scheme: Dyadic, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    """4 (log2 width + 2) eps ||u|| ||w_g|| + (inputs / width) eps || |x| folded || ||w_g||: kernels/dyadic.py."""
    sign = 1.0 - 2.0 * scheme.row_negative(np.arange(scheme.rows, dtype=np.uint64)).astype(float)
    groups = np.linalg.norm(w.reshape(scheme.groups, scheme.width), axis=1)
    u, magnitude = np.zeros((len(x), scheme.width)), np.zeros((len(x), scheme.width))
    for i in range(scheme.rows):
        u[:, i % scheme.width] += sign[i] * x[:, i]
        magnitude[:, i % scheme.width] += np.abs(x[:, i])
    steps = 4 * (np.log2(scheme.width) + 2)
    row = steps * np.linalg.norm(u, axis=1) + scheme.rows / scheme.width * np.linalg.norm(magnitude, axis=1)
    return EPS * row[:, None] * groups[np.arange(scheme.cols) % scheme.groups][None, :]


def transposed_bound(scheme: Dyadic, w: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Norm-wise as well, summed over the groups; repeats: columns that fall on one place."""
    repeats = -(-scheme.cols // scheme.buckets)
    steps = 4 * (np.log2(scheme.width) + 2) + scheme.groups + repeats
    total = np.zeros(len(y))
    for g in range(scheme.groups):
        folded = np.zeros((len(y), scheme.width))
        for j in range(g, scheme.cols, scheme.groups):
            folded[:, scheme.permute(j // scheme.groups)] += np.abs(y[:, j])
        total += np.linalg.norm(folded, axis=1) * np.linalg.norm(w[g * scheme.width : (g + 1) * scheme.width])
    return np.broadcast_to((EPS * steps * total)[:, None], (len(y), scheme.rows))


def product_bound(m: HashedMatrix, dense: np.ndarray, x: np.ndarray, transposed: bool) -> np.ndarray:
    """The bound of the kernel that the op chooses for a dense x."""
    scheme = m.scheme
    if not isinstance(scheme, Dyadic) or not m.in_range:
        return elementwise_bound(x, dense)
    w = (m.w.view(np.float16) if m.w.dtype == np.uint16 else m.w).astype(np.float64) * m.scale
    if transposed:
        return transposed_bound(scheme, w, x)
    return transform_bound(scheme, w, x)


def check(y: np.ndarray, expected: np.ndarray, bound: np.ndarray) -> None:
    assert y.dtype == np.float32
    assert y.shape == expected.shape
    excess = np.abs(y - expected) - bound - EPS * np.abs(expected)
    assert (excess <= 0).all(), f"over the bound by {excess.max()}, where the bound is {bound.flat[excess.argmax()]}"


# ---------------------------------------------------------------------------------------------------- device functions


@device
def xxh32_slots(i, j, seed, block, slots, out):
    for k in range(i.size):
        out[k] = hashing.signed_slot(hashing.xxh32_finish(hashing.xxh32_prefix(i[k], seed), j[k] // block), slots)


@device
def dyadic_parts(i, j, seed, width, half, groups, within, negative):
    for k in range(i.size):
        within[k] = np.int64(np.uint32(i[k] & (width - 1)) ^ hashing.permute(j[k] // groups, width, half, seed))
        negative[k] = hashing.row_sign(i[k], seed) * hashing.col_sign(j[k], seed) < 0


@device
def weights_of(w, out):
    for k in range(out.size):
        out[k] = hashing.weight(w, k)


EXTREME = np.array([0, 1, 2, 255, 2**16 - 1, 2**16, 2**24 + 1, 2**30, 2**31 - 2, 2**31 - 1])
SEEDS = (0, 1, 2**31, 2**32 - 1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("buckets", "block"), [(1, 1), (2**30 - 1, 1), (2**30 - 1, 7), (1000, 1000)])
def test_xxh32_hash_at_extremes(seed, buckets, block):
    i, j = (v.ravel() for v in np.meshgrid(EXTREME, EXTREME))
    scheme = Xxh32(buckets, 2**31 - 1, 2**31 - 1, seed, block)
    out = np.empty(i.size, np.int64)
    xxh32_slots(i, j, np.uint32(seed), block, scheme.slots, out)
    bucket, sign = scheme.cells(i, j)
    assert np.array_equal(out // 2 + j % block, bucket)
    assert np.array_equal(1 - 2 * (out % 2), sign)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("groups", "a"), [(1, 0), (1, 29), (3, 20), (1, 1), (7, 5), (2**20, 9)])
def test_dyadic_hash_at_extremes(seed, groups, a):
    i, j = (v.ravel() for v in np.meshgrid(EXTREME, EXTREME))
    scheme = Dyadic(groups << a, 2**31 - 1, 2**31 - 1, seed, 1 << a)
    within, negative = np.empty(i.size, np.int64), np.empty(i.size, np.bool_)
    dyadic_parts(i, j, np.uint32(seed), 1 << a, (a + 1) // 2, groups, within, negative)
    bucket, sign = scheme.cells(i, j)
    assert np.array_equal(j % groups * (1 << a) + within, bucket)
    assert np.array_equal(negative, sign < 0)


def test_fmix32_on_the_device():
    for value in (0, 1, 77, 2**31, 2**32 - 1):
        assert int(hashing.fmix32(np.uint32(value))) == fmix32(value)


def test_half_to_float_on_every_pattern():
    bits = np.arange(65536, dtype=np.uint16)
    out = np.empty(65536, np.float32)
    weights_of(bits, out)
    expected = np.array([naive.half(int(b)) for b in bits])
    np.testing.assert_array_equal(out, expected)
    assert np.array_equal(np.signbit(out), np.signbit(bits.view(np.float16)))


def test_weight_of_each_dtype():
    for w in (stored(9, "float32"), stored(9, "int8")):
        out = np.empty(9, np.float32)
        weights_of(w, out)
        assert np.array_equal(out, w.astype(np.float32))


def transformed(v: np.ndarray) -> np.ndarray:
    """H v along the first axis in float64, as the Kronecker product of two explicit matrices."""
    width, lanes = v.shape
    inner = min(width, 64)
    parts = v.astype(np.float64).reshape(width // inner, inner, lanes)
    parts = np.einsum("ab,xbl->xal", naive.hadamard_matrix(inner), parts)
    return np.einsum("xy,yal->xal", naive.hadamard_matrix(width // inner), parts).reshape(width, lanes)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_hadamard(lanes):
    rng = np.random.default_rng(lanes)
    for a in range(13):
        width = 1 << a
        whole = rng.integers(-100, 101, (width, lanes)).astype(np.float32)
        flat = whole.ravel().copy()
        hadamard(flat, width, lanes)
        assert np.array_equal(flat.reshape(width, lanes), transformed(whole)), width
        v = rng.standard_normal((width, lanes)).astype(np.float32)
        flat = v.ravel().copy()
        hadamard(flat, width, lanes)
        error = np.linalg.norm(flat.reshape(width, lanes) - transformed(v), axis=0)
        assert (error <= a * EPS * np.sqrt(width) * np.linalg.norm(v, axis=0)).all(), width


def test_hadamard_matrix_is_the_kronecker_power():
    h = np.ones((1, 1))
    for a in range(8):
        assert np.array_equal(naive.hadamard_matrix(1 << a), h)
        h = np.block([[h, h], [h, -h]])


@device
def vector_ops(a, b, c, out):
    x, y, z = intrinsics.load16(a, 3), intrinsics.load16(b, 0), intrinsics.load16(c, 0)
    intrinsics.store16(out, 1, intrinsics.add16(x, y))
    intrinsics.store16(out, 17, intrinsics.mul16(x, y))
    intrinsics.store16(out, 33, intrinsics.fma16(x, y, z))
    intrinsics.store16(out, 49, intrinsics.splat16(a[3]))
    intrinsics.store16(out, 65, intrinsics.swap1(x))
    intrinsics.store16(out, 81, intrinsics.swap2(x))
    intrinsics.store16(out, 97, intrinsics.swap4(x))
    intrinsics.store16(out, 113, intrinsics.swap8(x))


def test_vector_intrinsics_against_scalars():
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-50, 50, n).astype(np.float32) for n in (19, 16, 16))
    out = np.full(131, 77, np.float32)
    vector_ops(a, b, c, out)
    x = a[3:]
    rows = [x + b, x * b, x * b + c, np.full(16, x[0]), *(naive.butterfly(list(x), d) for d in (1, 2, 4, 8))]
    np.testing.assert_array_equal(out[1:129].reshape(8, 16), np.array(rows, np.float32))
    assert (out[0], out[129], out[130]) == (77, 77, 77)


@pytest.mark.skipif(not FUSES, reason="this ISA promises no fused multiply-add")
def test_fma_rounds_once():
    near = np.float32(1 + 2.0**-12)
    a, b = np.full(19, near, np.float32), np.full(16, near, np.float32)
    out = np.empty(130, np.float32)
    vector_ops(a, b, np.full(16, -1, np.float32), out)
    assert (out[33:49] == np.float32(2.0**-11 + 2.0**-24)).all()


@device
def signs_and_relu(x, negative, out):
    intrinsics.store16(out, 0, intrinsics.flip16(intrinsics.load16(x, 0), negative))
    intrinsics.store16(out, 16, intrinsics.relu16(intrinsics.load16(x, 0)))


@pytest.mark.parametrize("negative", [0, 1, 0x8000, 0xFFFF, 0x5A3C])
def test_flipped_vectors_and_relu(negative):
    x = np.array([-np.inf, -2, -1e-30, -0.0, 0, 1e-30, 3, np.inf, np.nan, -7, 8, 9, 10, 11, 12, -13], np.float32)
    out = np.empty(32, np.float32)
    signs_and_relu(x, np.uint16(negative), out)
    signs = np.array([1 - 2 * (negative >> lane & 1) for lane in range(16)], np.float32)
    np.testing.assert_array_equal(out[:16], x * signs)
    np.testing.assert_array_equal(out[16:], [naive_relu(v) for v in x])


def naive_relu(v):
    return 0 if v < 0 else v


@device
def counted(cells, steps):
    pointer = intrinsics.intp_at(cells.ctypes.data)
    for _ in range(steps):
        intrinsics.atomic_add(pointer, 1, 3)
        intrinsics.relax()
    intrinsics.atomic_store(pointer, 0, intrinsics.atomic_load(pointer, 1))


def test_atomics():
    cells = np.zeros(3, np.int64)
    counted(cells, 5)
    assert cells.tolist() == [15, 15, 0]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind):
    a, b = np.float32(-0.5), np.float32(1.5)
    values = np.array([-np.inf, -100, -1, -1e-30, 0, 1e-30, 0.7, 1.6, 100, np.inf, np.nan], np.float32)
    got = np.array([activate(v, ACTIVATIONS.index(kind), a, b) for v in values])
    expected = naive.activate(values.astype(np.float64), kind, float(a), float(b))
    np.testing.assert_allclose(got, expected, rtol=4 * EPS, atol=1e-38)


# ------------------------------------------------------------------------------------------------------------ products


@pytest.mark.parametrize("transposed", [False, True], ids=["x@W", "x@W'"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", PRODUCTS, ids=str)
def test_product(scheme, dtype, transposed):
    m = matrix(scheme, dtype)
    dense = unit_virtual(scheme, dtype) * float(np.float32(m.scale))
    dense = dense.T if transposed else dense
    op = HashedProduct(m, transposed)
    for rows in ROWS:
        x = inputs(rows, dense.shape[0])
        check(run(op, CALL, x), naive.matmul(x, dense), product_bound(m, dense, x, transposed))


def variants(families: tuple[str, ...]) -> set[str]:
    """The names of the families' kernels, for each stored dtype."""
    names = {f"{family}_{suffix}" for family in families for suffix in ("f32", "f16", "i8")}
    others = {"dyadic_small_f32": "dyadic_small_spectrum"}
    if ISA == INTEGER:
        others["dyadic_small_i8"] = "dyadic_integer_i8"
    return {others.get(name, name) for name in names}


def test_the_products_above_take_every_kernel():
    chosen = set()
    for scheme, dtype, rows, transposed in itertools.product(PRODUCTS, DTYPES, ROWS, (False, True)):
        m = matrix(scheme, dtype)
        op = HashedProduct(m, transposed)
        calls = emission(op, CALL, np.zeros((rows, op.inputs), np.float32)).calls
        chosen.update(call.kernel.name for call in calls)
    row = ("xxh32_small",) if SCALAR else ("xxh32_row",)
    families, counted = (*row, "block", DYADIC_ROW, "dyadic_transposed"), set() if SCALAR else {"count_inputs"}
    assert chosen == variants(families) | counted


@by_vectors
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", [Xxh32(500, 300, 200, 7, 1), Xxh32(500, 300, 200, 7, 16)], ids=str)
def test_the_number_of_zeros_decides_between_row_and_block(scheme, dtype):
    m, rows = matrix(scheme, dtype), 24
    op = HashedProduct(m)
    dense = unit_virtual(scheme, dtype) * float(np.float32(m.scale))
    x = inputs(rows, scheme.rows)
    count, alone, together = emission(op, CALL, x).calls
    assert (count.kernel.name, alone.kernel.name, together.kernel.name) == (
        "count_inputs",
        f"xxh32_row_{m.suffix}",
        f"block_{m.suffix}",
    )
    most = count.args["most"]
    assert 0 < most < x.size
    order = np.random.default_rng(0).permutation(x.size)
    source = Rows(Buffer("in", 0), scheme.rows, rows, scheme.rows, scheme.cols, Buffer("out", 0), scheme.cols)
    by_block, by_row, _ = candidates(m, source)
    for kept, expected in ((most, by_row), (most + 1, by_block)):
        sparse = x.copy()
        sparse.ravel()[order[kept:]] = 0
        y = run(op, CALL, sparse)
        check(y, naive.matmul(sparse, dense), elementwise_bound(sparse, dense))
        assert np.array_equal(y, run_emission(expected, sparse, y.shape)), kept


@pytest.mark.parametrize("finite", [True, False])
def test_where_zeros_are_skipped_half_of_the_inputs_are_expected_to_be(finite):
    scheme = Xxh32(500, 300, 200, 7, 16)
    w = stored(scheme.buckets, "float32").copy()
    w[0] = w[0] if finite else np.inf
    m = matrix(scheme, w=w)
    source = Rows(Buffer("in", 0), scheme.rows, 1, scheme.rows, scheme.cols, Buffer("out", 0), scheme.cols)
    (alone,) = (e for e in candidates(m, source) if e.choice == "xxh32_row_f32")
    chosen = emission(HashedProduct(m), CALL, inputs(1, scheme.rows))
    assert chosen.choice == alone.choice
    assert chosen.work == pytest.approx(alone.work / (2 if finite else 1))


BIASES: dict[str, tuple[str, ...] | None] = {
    "none": None,
    "scalar": (),
    "one": ("1",),
    "cols": ("cols",),
    "row": ("1", "cols"),
    "column": ("rows", "1"),
    "full": ("rows", "cols"),
}
FEW = [Xxh32(90, 130, 100, 4, 16), Xxh32(50, 37, 29, 1, 1), Dyadic(512, 64, 130, 3, 64), Dyadic(16, 100, 30, 2, 16)]


@pytest.mark.parametrize("transposed", [False, True], ids=["x@W", "x@W'"])
@pytest.mark.parametrize("scheme", FEW, ids=str)
@pytest.mark.parametrize("form", BIASES)
def test_bias_forms(scheme, form, transposed):
    m = matrix(scheme)
    dense = unit_virtual(scheme, "float32")
    dense = dense.T if transposed else dense
    for rows in (1, 3, 40):
        x, form_shape = inputs(rows, dense.shape[0]), BIASES[form]
        sizes = {"1": 1, "rows": rows, "cols": dense.shape[1]}
        shape = None if form_shape is None else tuple(sizes[d] for d in form_shape)
        bias = None if shape is None else np.random.default_rng(4).standard_normal(shape).astype(np.float32)
        y = run(HashedProduct(m, transposed), CALL, x, bias)
        expected = naive.matmul(x, dense)
        bound = product_bound(m, dense, x, transposed) + EPS * np.abs(expected)
        check(y, expected if bias is None else expected + bias, bound)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
@pytest.mark.parametrize("scheme", FEW, ids=str)
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_alpha_and_activations(scheme, kind, dtype):
    m = matrix(scheme, dtype)
    dense = unit_virtual(scheme, dtype) * float(np.float32(m.scale))
    epilogue = Epilogue(-0.37, kind, -0.2 if kind == "clip" else 0.1, 0.4)
    bias = inputs(1, scheme.cols, 9)[0]
    for rows in (2, 40):
        x = inputs(rows, scheme.rows)
        before = float(np.float32(-0.37)) * naive.matmul(x, dense) + bias
        expected = naive.activate(before, kind, float(np.float32(epilogue.a)), float(np.float32(epilogue.b)))
        bound = product_bound(m, dense, x, False) + 4 * EPS * (np.abs(before) + np.abs(bias))
        check(run(HashedProduct(m, epilogue=epilogue), CALL, x, bias), expected, bound + 4 * EPS)


@pytest.mark.parametrize("scheme", FEW, ids=str)
def test_leading_dimensions(scheme):
    m = matrix(scheme)
    for shape in ((2, 3), (2, 0), (), (1, 1, 2)):
        x = np.random.default_rng(2).standard_normal((*shape, scheme.rows)).astype(np.float32)
        flat = x.reshape(int(np.prod(shape)), scheme.rows)
        dense = unit_virtual(scheme, "float32")
        y = run(HashedProduct(m), CALL, x)
        assert y.shape == (*shape, scheme.cols)
        if x.size:
            check(y.reshape(len(flat), -1), naive.matmul(flat, dense), product_bound(m, dense, flat, False))


@pytest.mark.parametrize("transposed", [False, True], ids=["x@W", "x@W'"])
@pytest.mark.parametrize("scheme", PRODUCTS, ids=str)
def test_rows_of_zeros_give_zeros(scheme, transposed):
    op = HashedProduct(matrix(scheme), transposed)
    for rows in (1, 20):
        assert not run(op, CALL, np.zeros((rows, op.inputs), np.float32)).any()


@by_vectors
@pytest.mark.parametrize("scheme", [Dyadic(4096, 512, 300, 3, 512), Dyadic(2048, 600, 900, 4, 256)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sparse_rows_go_directly_and_dense_ones_do_not(scheme, dtype):
    m = matrix(scheme, dtype)
    dense = m.scheme.expand(stored(scheme.buckets, dtype).astype(np.float64)) * float(np.float32(m.scale))
    op, x = HashedProduct(m), inputs(4, scheme.rows)
    direct_below = emission(op, CALL, x).calls[0].args["direct_below"]
    assert 0 < direct_below < scheme.rows
    x[0, np.random.default_rng(0).permutation(scheme.rows)[direct_below:]] = 0
    x[1, np.random.default_rng(1).permutation(scheme.rows)[direct_below + 1 :]] = 0
    x[2] = 0
    expected = x.astype(np.float64) @ dense
    norm_wise = transform_bound(scheme, stored(scheme.buckets, dtype) * np.float64(m.scale), x)
    y = run(op, CALL, x)
    check(y[0], expected[0], elementwise_bound(x, dense)[0])
    check(y[1:], expected[1:], norm_wise[1:])
    assert np.array_equal(run(op, CALL, np.repeat(x, 10, 0))[::10], y)


@by_vectors
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", [s for s in PRODUCTS if isinstance(s, Dyadic)], ids=str)
def test_rows_cut_into_chunks_give_the_same_bits(scheme, dtype, monkeypatch):
    m, x = matrix(scheme, dtype), inputs(3, scheme.rows)
    x[1] = 0
    x[1, 0] = 1e30
    bias = inputs(1, scheme.cols, 5)[0]
    op = HashedProduct(m, epilogue=Epilogue(0.5, "relu"))
    whole = run(op, CALL, x, bias)
    monkeypatch.setattr(hashed, "SPLIT_NS", 0)
    names = [call.kernel.name for call in emission(op, CALL, x, bias).calls]
    if len(m.chunks) > 1:
        assert names == ["dyadic_fold", f"dyadic_inverse_{m.suffix}", "dyadic_finish"]
    assert np.array_equal(run(op, CALL, x, bias), whole)


def transformed_product(scheme: Dyadic) -> None:
    """Hold the product of rows that are transformed to its bound."""
    m, x = matrix(scheme), inputs(3, scheme.rows)
    assert emission(HashedProduct(m), CALL, x).calls[0].args["direct_below"] < scheme.rows
    expected = x.astype(np.float64) @ scheme.expand(m.w.astype(np.float64))
    check(run(HashedProduct(m), CALL, x), expected, transform_bound(scheme, m.w, x))


PARTED = [(1, 8192), (2, 4096), (3, 4096), (5, 2048), (8, 1024), (16, 1024), (37, 1024)]
"""Groups and width."""


@by_vectors
@pytest.mark.parametrize(("groups", "width"), PARTED)
def test_outputs_summed_up_part_by_part(groups, width):
    scheme = Dyadic(groups * width, 9000, groups * 11 - groups // 2, 5, width)
    assert parted_lanes(scheme)
    transformed_product(scheme)


def parted_lanes(scheme: Dyadic) -> set[int]:
    """Of the chunks whose outputs are summed up part by part."""
    chunks = matrix(scheme).chunks.tolist()
    return {n for _, n, _, tail in chunks if tail == scheme.width * n // 16 // RADIX > dyadic.PART}


@by_vectors
def test_the_parts_above_are_of_all_lanes():
    found = [parted_lanes(Dyadic(groups * width, 9000, groups * 11, 5, width)) for groups, width in PARTED]
    assert set().union(*found) == {1, 2, 4, 8, 16}


@by_vectors
def test_outputs_that_leave_no_room_for_their_sums_are_summed_up_at_once(monkeypatch):
    monkeypatch.setattr(dyadic, "best_tail", lambda vectors, *_: max(1, vectors // RADIX))
    monkeypatch.setattr(dyadic, "_cut", lambda *_: (0.0, (16,)))
    scheme = Dyadic(16 * 512, 600, 16 * 400, 5, 512)
    assert matrix(scheme).chunks[0, 3] == 512 // RADIX > dyadic.PART
    transformed_product(scheme)


@by_vectors
def test_long_sums_keep_to_the_bound_where_every_partial_sum_rounds_alike():
    bits, groups = 18, 16
    scheme = Dyadic(groups << bits, 1 << bits, groups, 1, 1 << bits)
    k = np.arange(1 << bits)
    # A bent sequence: its transform is flat, as it is itself.
    bent = 1.0 - 2 * np.array([(i >> 9 & i & 511).bit_count() & 1 for i in range(1 << bits)])
    w = np.zeros(1 << bits, np.float32)
    w[k ^ int(scheme.permute(0))] = (1 + 255 * EPS) * bent
    x = (bent * (1 - 2.0 * scheme.row_negative(k.astype(np.uint64)))).astype(np.float32)
    y = run(HashedProduct(matrix(scheme, w=np.tile(w, groups))), CALL, x[None])
    exact = (1 + 255 * EPS) * (1 << bits)
    assert (np.abs(np.abs(y) - exact) <= (4 * (bits + 2) + 1) * EPS * exact).all()


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    budget=st.integers(1, 700),
    seed=st.integers(0, 2**32 - 1),
    name=st.sampled_from(["xxh32", "dyadic"]),
    transposed=st.booleans(),
    data=st.data(),
)
def test_products_of_any_shape(rows, shape, budget, seed, name, transposed, data):
    if name == "xxh32":
        buckets = min(budget, shape[0] * shape[1])
        scheme: Scheme = Xxh32(buckets, *shape, seed, data.draw(st.integers(1, buckets)))
    else:
        width = 1 << data.draw(st.integers(0, budget.bit_length() - 1))
        scheme = Dyadic(budget // width * width, *shape, seed, width)
    m = matrix(scheme, data.draw(st.sampled_from(DTYPES)))
    dense = virtual(m).T if transposed else virtual(m)
    x = inputs(rows, dense.shape[0], seed)
    check(run(HashedProduct(m, transposed), CALL, x), naive.matmul(x, dense), product_bound(m, dense, x, transposed))


# --------------------------------------------------------------------------------------------------- odd values, scales


def spoiled(values: np.ndarray, *odd: float) -> np.ndarray:
    """A copy with odd values at fixed places, far apart."""
    out = values.copy()
    flat = out.reshape(-1)
    for k, value in enumerate(odd):
        flat[(2 * k + 1) * flat.size // (2 * len(odd))] = value
    return out


ODD = {
    "NaN": (np.nan,),
    "Inf": (np.inf,),
    "-Inf": (-np.inf,),
    "both Inf": (np.inf, -np.inf),
    "Inf and zero": (np.inf, 0.0),
}
ODD_SCHEMES = [
    Xxh32(400, 37, 29, 1, 1),
    Xxh32(390, 30, 100, 4, 16),
    Dyadic(512, 64, 130, 3, 64),
    Dyadic(64 * 18, 70, 50, 9, 64),
    Dyadic(32, 20, 16, 2, 32),
]


@pytest.mark.parametrize("transposed", [False, True], ids=["x@W", "x@W'"])
@pytest.mark.parametrize("scheme", ODD_SCHEMES, ids=str)
@pytest.mark.parametrize("where", ["x", "w", "w with zeros in x", "bias"])
@pytest.mark.parametrize("odd", ODD)
def test_nan_and_inf_stay_where_the_dense_product_has_them(scheme, where, odd, transposed):
    w = stored(scheme.buckets, "float32")
    w = spoiled(w, *ODD[odd]) if where.startswith("w") else w
    m = matrix(scheme, w=w)
    dense = virtual(m).T if transposed else virtual(m)
    bias = inputs(1, dense.shape[1], 3)[0]
    bias = spoiled(bias, *ODD[odd]) if where == "bias" else bias
    for rows in (1, 3, 4, 19):
        x = inputs(rows, dense.shape[0])
        x = spoiled(x, *ODD[odd]) if where == "x" else x
        if "zeros" in where:
            x[:, ::2] = 0
        y = run(HashedProduct(m, transposed), CALL, x, bias)
        expected = naive.matmul(x, dense) + bias
        assert np.array_equal(np.isnan(y), np.isnan(expected))
        assert np.array_equal(y == np.inf, expected == np.inf)
        assert np.array_equal(y == -np.inf, expected == -np.inf)
        finite = np.isfinite(expected)
        np.testing.assert_allclose(y[finite], expected[finite], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("scheme", [Xxh32(20, 30, 17, 1, 1), Xxh32(20, 30, 17, 1, 5)], ids=str)
def test_nan_and_inf_in_a_table(scheme, dtype):
    w = spoiled(stored(scheme.buckets, dtype), np.nan, np.inf, -np.inf)
    m = matrix(scheme, w=w)
    np.testing.assert_array_equal(run(HashedLookup(m), CALL, np.arange(30)), virtual(m))
    np.testing.assert_array_equal(run(HashedExpand(m), CALL), virtual(m))


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("where", ["x", "w", "bias"])
@pytest.mark.parametrize("scheme", [Xxh32(30, 18, 5, 1, 1), Dyadic(96, 18, 5, 3, 32)], ids=str)
def test_nan_and_inf_in_a_convolution(scheme, where, odd):
    w = stored(scheme.buckets, "float32")
    m = matrix(scheme, w=spoiled(w, *ODD[odd]) if where == "w" else w)
    x = np.random.default_rng(0).standard_normal((2, 2, 6, 5)).astype(np.float32)
    x = spoiled(x, *ODD[odd]) if where == "x" else x
    bias = spoiled(inputs(1, 5)[0], *ODD[odd]) if where == "bias" else inputs(1, 5)[0]
    with np.errstate(all="ignore"):
        expected = naive.conv2d(x, virtual(m).T.reshape(5, 2, 3, 3)) + bias[:, None, None]
    y = run(HashedConv(m, (5, 2, 3, 3)), CALL, x, None, bias)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    assert np.array_equal(y == np.inf, expected == np.inf)
    assert np.array_equal(y == -np.inf, expected == -np.inf)


SCALES = [(1e30, 1.0), (1.0, 1e30), (1e30, 1e-30), (1e-30, 1e30), (1e-30, 1.0), (1.0, 1e-30), (1e-20, 1e-20)]


@pytest.mark.parametrize("transposed", [False, True], ids=["x@W", "x@W'"])
@pytest.mark.parametrize("scheme", ODD_SCHEMES, ids=str)
@pytest.mark.parametrize("scales", SCALES, ids=str)
def test_extreme_scales(scheme, scales, transposed):
    w = (stored(scheme.buckets, "float32") * scales[1]).astype(np.float32)
    m = matrix(scheme, w=w)
    dense = virtual(m).T if transposed else virtual(m)
    for rows in (2, 40):
        x = (inputs(rows, dense.shape[0]) * scales[0]).astype(np.float32)
        check(run(HashedProduct(m, transposed), CALL, x), naive.matmul(x, dense), elementwise_bound(x, dense))


@pytest.mark.parametrize("scheme", ODD_SCHEMES, ids=str)
@pytest.mark.parametrize("transposed", [False, True], ids=["x@W", "x@W'"])
def test_rows_of_different_scales_do_not_meet(scheme, transposed):
    m = matrix(scheme)
    dense = virtual(m).T if transposed else virtual(m)
    for rows in (4, 40):
        x = inputs(rows, dense.shape[0]) * np.geomspace(1e-30, 1e30, rows).astype(np.float32)[:, None]
        bound = np.maximum(elementwise_bound(x, dense), product_bound(m, dense, x, transposed))
        check(run(HashedProduct(m, transposed), CALL, x), naive.matmul(x, dense), bound)


@pytest.mark.parametrize("scheme", FEW, ids=str)
def test_large_inputs_with_small_int8_scales_do_not_overflow(scheme):
    m = HashedMatrix(scheme, stored(scheme.buckets, "int8"), 1e-6)
    dense = virtual(m)
    for rows in (2, 40):
        x = (inputs(rows, scheme.rows) * 1e37).astype(np.float32)
        check(run(HashedProduct(m), CALL, x), naive.matmul(x, dense), elementwise_bound(x, dense))


# ------------------------------------------------------------------------------------- convolutions, tables, W itself

CONVOLUTIONS = {
    "plain": ((2, 3, 8, 7), (5, 3, 3, 3), {}),
    "strides": ((2, 3, 8, 7), (5, 3, 3, 2), {"strides": (2, 3)}),
    "pads": ((1, 3, 5, 5), (4, 3, 3, 3), {"pads": (1, 2, 0, 1)}),
    "dilations": ((1, 2, 9, 9), (4, 2, 3, 3), {"dilations": (2, 3), "pads": (2, 2, 2, 2)}),
    "one by one": ((3, 6, 4, 4), (7, 6, 1, 1), {}),
    "groups": ((2, 6, 5, 6), (4, 3, 3, 3), {"group": 2, "pads": (1, 1, 1, 1)}),
    "depthwise": ((1, 4, 6, 6), (8, 1, 3, 3), {"group": 4}),
    "whole image": ((2, 2, 5, 5), (70, 2, 5, 5), {}),
    "one image": ((1, 1, 4, 4), (3, 1, 2, 2), {}),
    "no image": ((0, 2, 4, 4), (3, 2, 2, 2), {}),
}


def conv_scheme(name: str, weights: tuple[int, ...]) -> Scheme:
    rows, cols = int(np.prod(weights[1:])), weights[0]
    if name == "dyadic":
        return Dyadic.fit(rows, cols, max(1, rows * cols // 2), 5)
    return Xxh32(max(3, rows * cols // 3), rows, cols, 5, 1 if name == "xxh32" else 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["xxh32", "xxh32 runs", "dyadic"])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case, name, dtype):
    shape, weights, attributes = CONVOLUTIONS[case]
    m = matrix(conv_scheme(name, weights), dtype)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    bias = inputs(1, weights[0])[0]
    dense = virtual(m).T.reshape(weights)
    y = run(HashedConv(m, weights, Epilogue(activation="relu")), Call(attributes, 20), x, None, bias)
    kind = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1} | attributes
    expected = naive.conv2d(x, dense, **kind) + bias[:, None, None]
    bound = naive.conv2d(np.abs(x), np.abs(dense), **kind) * (m.scheme.rows + 2) * EPS
    if isinstance(m.scheme, Dyadic):
        # ||u|| ||w_g|| is at most the norms of a whole patch and of all of w.
        norm = np.sqrt(naive.conv2d(x**2, np.ones_like(dense), **kind)) * np.linalg.norm(dense)
        bound = np.maximum(bound, 4 * (np.log2(m.scheme.width) + 4) * EPS * norm * m.scheme.rows)
    check(y, np.maximum(expected, 0), bound + 4 * EPS * np.abs(bias).max())


def test_convolutions_take_every_kernel():
    """The cases above, and images that are a line of many pixels."""
    chosen = set()
    for case, name, dtype in itertools.product(CONVOLUTIONS, ("xxh32", "dyadic"), DTYPES):
        shape, weights, attributes = CONVOLUTIONS[case]
        m = matrix(conv_scheme(name, weights), dtype)
        op = HashedConv(m, weights)
        x = np.zeros(shape, np.float32)
        chosen.update(call.kernel.name for call in emission(op, Call(attributes, 20), x).calls)
    families = ("pixel_block", DYADIC_ROW) if SCALAR else ("pixel_block", DYADIC_ROW, "dyadic_pixels")
    assert chosen == variants(families)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["xxh32", "xxh32 runs", "dyadic"])
@pytest.mark.parametrize("size", [(17, 40), (1, 260), (3, 15), (40, 16)])
def test_every_kernel_of_a_convolution_agrees(name, dtype, size):
    shape, weights = (2, 5, *size), (70, 5, 3, 3)
    m = matrix(conv_scheme(name, weights), dtype)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    attributes = {"pads": (1, 2, 1, 0), "strides": (1, 1)}
    dense = virtual(m).T.reshape(weights)
    geometry = Geometry.of(Call(attributes, 20), shape, weights)
    kind = {"strides": (1, 1), "pads": (1, 2, 1, 0), "dilations": (1, 1), "group": 1}
    expected = naive.conv2d(x, dense, **kind)
    for made in candidates(m, conv_rows(geometry, 0, None, Epilogue())):
        y = run_emission(made, x, geometry.out_shape)
        np.testing.assert_allclose(y, expected, atol=1e-4 * np.abs(expected).max(), err_msg=made.choice)


@pytest.mark.parametrize("name", ["xxh32", "dyadic"])
def test_convolution_of_one_dimension(name):
    m = matrix(conv_scheme(name, (5, 3, 4)))
    x = np.random.default_rng(1).standard_normal((2, 3, 20)).astype(np.float32)
    call = Call({"strides": (2,), "pads": (3, 1), "dilations": (2,)}, 20)
    dense = virtual(m).T.reshape(5, 3, 1, 4)
    expected = naive.conv2d(x[:, :, None], dense, (1, 2), (0, 3, 0, 1), (1, 2))
    np.testing.assert_allclose(run(HashedConv(m, (5, 3, 4)), call, x), expected[:, :, 0], atol=2e-5)


TABLES = [Xxh32(50, 20, 33, 1, 1), Xxh32(50, 20, 33, 1, 16), Xxh32(1, 3, 5, 1, 1), Xxh32(64, 5, 20, 1, 64)]


@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64], ids=["int32", "int64"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", TABLES, ids=str)
def test_lookup(scheme, dtype, ids_dtype):
    m = matrix(scheme, dtype)
    for shape in ((), (0,), (1,), (50,), (3, 7)):
        ids = np.random.default_rng(0).integers(-scheme.rows, scheme.rows, shape).astype(ids_dtype)
        expected = naive.lookup(virtual(m), ids)
        np.testing.assert_allclose(run(HashedLookup(m), CALL, ids), expected, rtol=EPS, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", [*TABLES, Xxh32(99, 40, 70, 3, 32)], ids=str)
@pytest.mark.parametrize("bag", ["sum", "mean"])
def test_bags(scheme, dtype, bag):
    m = matrix(scheme, dtype)
    for shape in ((3,), (4, 50), (2, 1, 300), (0, 5), (3, 0)):
        ids = np.random.default_rng(0).integers(-scheme.rows, scheme.rows, shape)
        rows = naive.lookup(virtual(m), ids)
        if bag == "mean" and shape[-1] == 0:
            with pytest.raises(OpError, match="expected some elements"):
                run(HashedLookup(m, bag), CALL, ids)
            continue
        expected = rows.sum(-2) if bag == "sum" else rows.mean(-2)
        bound = (shape[-1] + 3) * EPS * np.abs(rows).sum(-2) / (1 if bag == "sum" else shape[-1])
        check(run(HashedLookup(m, bag), CALL, ids), expected, bound)
        assert run(HashedLookup(m, bag, True), CALL, ids).shape == (*shape[:-1], 1, scheme.cols)
    with pytest.raises(OpError, match="expected bags"):
        run(HashedLookup(m, bag), CALL, np.int64(1))


def test_lookup_at_the_far_end_of_a_huge_table():
    scheme = Xxh32(1000, 2**31 - 1, 70, 3, 1)
    m, ids = matrix(scheme), np.array([0, 2**31 - 2, -1, -(2**31 - 1), 2**24 + 1])
    bucket, sign = scheme.cells(ids[:, None] % (2**31 - 1), np.arange(70)[None, :])
    assert np.array_equal(run(HashedLookup(m), CALL, ids), m.w[bucket] * sign)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scheme", PRODUCTS, ids=str)
def test_expand(scheme, dtype):
    m = matrix(scheme, dtype)
    y = run(HashedExpand(m), CALL)
    np.testing.assert_allclose(y, unit_virtual(scheme, dtype) * float(np.float32(m.scale)), rtol=EPS, atol=0)
    assert np.array_equal(y, naive.dense(m))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "scheme",
    [Dyadic(16 * 21, 9, 9, 1, 16), Dyadic(5, 9, 9, 1, 1), Dyadic(64, 9, 9, 1, 64), Dyadic(512 * 27, 9, 90, 1, 512)],
    ids=str,
)
def test_spectrum(scheme, dtype):
    w = stored(scheme.buckets, dtype)
    m = matrix(scheme, dtype)
    assert m.take_spectrum().size == spectrum_size(scheme)
    h = naive.hadamard_matrix(scheme.width)
    groups = w.reshape(scheme.groups, scheme.width).astype(np.float64)
    ends = [*m.chunks[1:, 2], m.take_spectrum().size]
    covered = 0
    for (first, lanes, at, _), end in zip(m.chunks.tolist(), ends, strict=True):
        assert end - at == scheme.width * lanes
        part, vectors = m.take_spectrum()[at:end], scheme.width * lanes // 16
        if vectors >= RADIX:
            part = part.reshape(vectors // RADIX, RADIX, 16).swapaxes(0, 1).reshape(-1)
        part, there = part.reshape(scheme.width, lanes), min(lanes, scheme.groups - first)
        expected = (groups[first : first + there] @ h).T / scheme.width
        np.testing.assert_allclose(part[:, :there], expected, atol=1e-6 * np.abs(groups).max())
        assert not part[:, there:].any()
        assert first == covered
        covered += lanes
    assert scheme.groups <= covered < scheme.groups + 16


@pytest.mark.parametrize("scheme", [Dyadic(600, 90, 130, 7, 8), Dyadic(64, 16, 3, 0, 64)], ids=str)
def test_tables_of_signs_and_places(scheme):
    m = matrix(scheme)
    for words, count, negative in (
        (m.row_signs, scheme.rows, scheme.row_negative),
        (m.col_signs, scheme.cols, scheme.col_negative),
    ):
        bits = [int(words[i // 16]) >> i % 16 & 1 for i in range(16 * len(words))]
        assert bits == [int(negative(i)) for i in range(count)] + [0] * (len(bits) - count)
    assert m.places.tolist() == [scheme.permute(t) for t in range(-(-scheme.cols // scheme.groups))]


# -------------------------------------------------------------------------------------------------- dense counterparts

DENSE = {
    "row": ((1, 33), (33, 70)),
    "rows": ((3, 130), (130, 64)),
    "block": ((40, 200), (200, 130)),
    "batch": ((2, 3, 40, 9), (3, 9, 5)),
    "shared": ((2, 5, 9), (9, 5)),
    "vector": ((9,), (9, 5)),
    "by vector": ((4, 9), (9,)),
    "two vectors": ((9,), (9,)),
    "no rows": ((0, 9), (9, 5)),
    "no inputs": ((3, 0), (0, 5)),
}


@pytest.mark.parametrize("case", DENSE)
def test_dense_matmul(case):
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype(np.float32) for s in DENSE[case])
    expected = np.matmul(x.astype(np.float64), w.astype(np.float64))
    magnitude = np.matmul(np.abs(x).astype(np.float64), np.abs(w).astype(np.float64))
    check(run(MatMul(), CALL, x, w), np.asarray(expected), np.asarray(EPS * x.shape[-1] * magnitude))


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_dense_gemm(rows, transposed):
    x, w, c = inputs(rows, 150), inputs(150, 100, 2), inputs(1, 100, 3)
    call = Call({"transB": transposed, "alpha": 0.5}, 20)
    expected = 0.5 * naive.matmul(x, w) + c
    bound = elementwise_bound(x, w) + EPS * np.abs(c)
    given_w = np.ascontiguousarray(w.T) if transposed else w
    check(run(Gemm(Epilogue(activation="relu")), call, x, given_w, c), np.maximum(expected, 0), bound)


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_dense_convolution(case):
    shape, weights, attributes = CONVOLUTIONS[case]
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal(shape).astype(np.float32), rng.standard_normal(weights).astype(np.float32)
    kind = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1} | attributes
    bound = naive.conv2d(np.abs(x), np.abs(w), **kind) * np.prod(weights[1:]) * EPS
    check(run(Conv(), Call(attributes, 20), x, w), naive.conv2d(x, w, **kind), bound)


def test_scratch_is_what_the_design_allows():
    assert blocks.SCRATCH_BYTES <= 256 * 1024
    for width in (64, 4096):
        assert dyadic.row_scratch_bytes(width, width, width, 16) <= 2 * 4 * 16 * width
