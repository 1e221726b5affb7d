"""The reference of each hash: exact values, statistics, structure, parameter ranges."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from hashinfer.errors import SchemeError
from hashinfer.schemes import BY_OP_TYPE, SCHEMES, Dyadic, Scheme, Xxh32, scheme_named
from hashinfer.schemes.bits import fmix32, xxh32_pair
from tests.naive import hadamard_matrix

VECTORS = json.loads((Path(__file__).parent / "vectors" / "schemes.json").read_text())
CASES = [(name, case) for name in SCHEMES for case in VECTORS[name]]
FAR = 2**31 - 2


def made(name: str, case: dict[str, int]) -> Scheme:
    return SCHEMES[name](**{k: v for k, v in case.items() if k != "samples"})


def case_id(value: object) -> str:
    if isinstance(value, dict):
        return "-".join(str(v) for k, v in value.items() if k != "samples")
    return str(value)


def chi_square_bound(degrees: int) -> float:
    """Five standard deviations over the mean of a chi-square variable."""
    return degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize(("name", "case"), CASES, ids=case_id)
def test_vectors(name, case):
    scheme = made(name, case)
    samples = case["samples"]
    for s in samples:
        assert scheme.cell(s["i"], s["j"]) == (s["bucket"], s["sign"])
    bucket, sign = scheme.cells([s["i"] for s in samples], [s["j"] for s in samples])
    assert bucket.dtype == np.int64
    assert sign.dtype == np.int8
    assert bucket.tolist() == [s["bucket"] for s in samples]
    assert sign.tolist() == [s["sign"] for s in samples]


@pytest.mark.parametrize(
    "scheme",
    [
        Xxh32(5, 7, 11, 3, 1),
        Xxh32(50, 7, 11, 3, 4),
        Xxh32(4, 5, 9, 2**32 - 1, 4),
        Dyadic(24, 9, 50, 5, 8),
        Dyadic(3, 4, 7, 5, 1),
        Dyadic(64, 33, 20, 2**32 - 1, 64),
    ],
    ids=str,
)
def test_table_and_expand_agree_with_cell(scheme):
    bucket, sign = scheme.table()
    w = np.random.default_rng(0).standard_normal(scheme.buckets).astype(np.float32)
    dense = scheme.expand(w)
    assert dense.shape == (scheme.rows, scheme.cols)
    for i, j in itertools.product(range(scheme.rows), range(scheme.cols)):
        k, s = scheme.cell(i, j)
        assert (bucket[i, j], sign[i, j]) == (k, s)
        assert 0 <= k < scheme.buckets
        assert dense[i, j] == s * w[k]


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_cells_agree_with_cell_at_far_corners(name, seed):
    big = 2**30 - 1 if name == "xxh32" else 2**29
    scheme = SCHEMES[name](big, 2**31 - 1, 2**31 - 1, seed, 1 if name == "xxh32" else 2**28)
    corners = [0, 1, 2**16 - 1, 2**16, 2**30, 2**31 - 3, FAR]
    i, j = np.meshgrid(corners, corners, indexing="ij")
    bucket, sign = scheme.cells(i, j)
    for index in np.ndindex(i.shape):
        assert (bucket[index], sign[index]) == scheme.cell(int(i[index]), int(j[index]))
        assert 0 <= bucket[index] < big


def test_xxh32_is_the_standard_hash():
    rng = np.random.default_rng(1)
    pairs = [*itertools.product([0, 1, 2**31 - 2, 2**32 - 1], repeat=2), *rng.integers(0, 2**32, (200, 2)).tolist()]
    for i, b in pairs:
        for seed in (0, 1, 0xDEADBEEF, 2**32 - 1):
            expected = xxhash.xxh32_intdigest(i.to_bytes(4, "little") + b.to_bytes(4, "little"), seed)
            assert xxh32_pair(i, b, seed) == expected


def test_fmix32_known_values():
    assert [fmix32(v) for v in (0, 1, 0xFFFFFFFF)] == [0, 0x514E28B7, 0x81F16F39]


@pytest.mark.parametrize(("buckets", "block"), [(7, 1), (96, 1), (103, 8)], ids=str)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_xxh32_signed_slots_are_uniform(buckets, block, seed):
    scheme = Xxh32(buckets, 512, 256 * block, seed, block)
    bucket, sign = scheme.cells(np.arange(512)[:, None], np.arange(256)[None, :] * block)
    slots = 2 * bucket + (sign < 0)
    counts = np.bincount(slots.ravel(), minlength=scheme.slots)
    expected = slots.size / scheme.slots
    assert len(counts) == scheme.slots
    assert ((counts - expected) ** 2 / expected).sum() < chi_square_bound(scheme.slots - 1)


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sign_is_independent_of_bucket(name, seed):
    scheme = SCHEMES[name](64, 512, 256, seed, 1 if name == "xxh32" else 16)
    bucket, sign = scheme.table()
    both = np.bincount(2 * bucket.ravel() + (sign.ravel() < 0), minlength=128).reshape(64, 2)
    expected = both.sum(1, keepdims=True) * both.sum(0) / both.sum()
    # Dyadic signs are products of row and column signs: fewer degrees of freedom, so twice the room.
    room = 1 if name == "xxh32" else 2
    assert ((both - expected) ** 2 / expected).sum() < room * chi_square_bound(63)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_signs_of_neighbours_are_uncorrelated(name):
    scheme = SCHEMES[name](256, 512, 512, 9, 1 if name == "xxh32" else 64)
    _, sign = scheme.table()
    signs = sign.astype(float)
    for product in (signs[1:] * signs[:-1], signs[:, 1:] * signs[:, :-1]):
        # The mean of n independent signs; of a dyadic scheme only a row's worth is independent.
        independent = product.size if name == "xxh32" else 511
        assert abs(product.mean()) < 5 / math.sqrt(independent)


@pytest.mark.parametrize("a", range(13))
@pytest.mark.parametrize("seed", [0, 1, 77, 2**32 - 1])
def test_perm_is_a_bijection(a, seed):
    width = 1 << a
    scheme = Dyadic(width, width, width, seed, width)
    images = scheme.permute(np.arange(width, dtype=np.uint64))
    assert np.array_equal(np.sort(images), np.arange(width))
    assert [scheme.permute(t) for t in range(0, width, max(1, width // 16))] == images[:: max(1, width // 16)].tolist()


DYADIC = [
    Dyadic(64, 16, 40, 1, 16),
    Dyadic(64, 16, 200, 2, 16),
    Dyadic(96, 50, 33, 3, 32),
    Dyadic(8, 100, 100, 4, 8),
    Dyadic(5, 9, 17, 5, 1),
    Dyadic(7 * 64, 64, 1000, 6, 64),
]


@pytest.mark.parametrize("scheme", DYADIC, ids=str)
def test_dyadic_column_hits_no_bucket_twice_while_inputs_fit(scheme):
    bucket, _ = scheme.table()
    head = bucket[: scheme.width]
    for j in range(scheme.cols):
        assert len(np.unique(head[:, j])) == len(head)


@pytest.mark.parametrize("scheme", DYADIC, ids=str)
def test_dyadic_rows_fold_at_width(scheme):
    bucket, sign = scheme.cells(np.arange(3 * scheme.width)[:, None], np.arange(scheme.cols)[None, :])
    for i in range(2 * scheme.width):
        assert np.array_equal(bucket[i], bucket[i + scheme.width])
        assert abs(int((sign[i].astype(int) * sign[i + scheme.width]).sum())) == scheme.cols


@pytest.mark.parametrize("scheme", DYADIC, ids=str)
def test_dyadic_columns_repeat_up_to_sign_exactly_when_group_and_perm_agree(scheme):
    bucket, sign = scheme.table()
    key = [(j % scheme.groups, scheme.permute(j // scheme.groups)) for j in range(scheme.cols)]
    for j, k in itertools.combinations(range(min(scheme.cols, 100)), 2):
        same = np.array_equal(bucket[:, j], bucket[:, k])
        assert same == (key[j] == key[k])
        if same:
            assert abs(int((sign[:, j].astype(int) * sign[:, k]).sum())) == scheme.rows
    distinct = len(set(key))
    assert distinct == min(scheme.cols, scheme.buckets)


@pytest.mark.parametrize("scheme", [Dyadic(64, 32, 64, 1, 32), Dyadic(256, 256, 64, 2, 64)], ids=str)
def test_dyadic_balance(scheme):
    """Where width divides rows and K divides cols, or all of a group's columns differ, every bucket is hit alike."""
    bucket, _ = Dyadic(scheme.buckets, scheme.rows, 2 * scheme.buckets, scheme.seed, scheme.width).table()
    counts = np.bincount(bucket.ravel(), minlength=scheme.buckets)
    assert counts.min() == counts.max() == bucket.size // scheme.buckets
    part, _ = scheme.table()
    per_column = np.bincount(part[:, 0], minlength=scheme.buckets)
    assert set(np.unique(per_column)) <= {0, scheme.rows // scheme.width}


def expected_transform(scheme, w, x):
    """x @ W by DESIGN.md's identity, in float64 with an explicit Hadamard matrix."""
    h, width, groups = hadamard_matrix(scheme.width), scheme.width, scheme.groups
    u = np.zeros(width)
    for i in range(scheme.rows):
        u[i % width] += (1 - 2 * scheme.row_negative(i)) * x[i]
    y = np.zeros(scheme.cols)
    for j in range(scheme.cols):
        g, t = j % groups, j // groups
        spectrum = (h @ w[g * width : (g + 1) * width]) * (h @ u)
        y[j] = (1 - 2 * scheme.col_negative(j)) * (h @ spectrum / width)[scheme.permute(t)]
    return y


def expected_transposed(scheme, w, y):
    h, width, groups = hadamard_matrix(scheme.width), scheme.width, scheme.groups
    total = np.zeros(width)
    for g in range(groups):
        v = np.zeros(width)
        for j in range(g, scheme.cols, groups):
            v[scheme.permute(j // groups)] += (1 - 2 * scheme.col_negative(j)) * y[j]
        total += (h @ w[g * width : (g + 1) * width]) * (h @ v)
    z = h @ total / width
    return np.array([(1 - 2 * scheme.row_negative(i)) * z[i % width] for i in range(scheme.rows)])


@pytest.mark.parametrize("scheme", DYADIC, ids=str)
def test_dyadic_transform_identities(scheme):
    rng = np.random.default_rng(5)
    w, x, y = (rng.standard_normal(n) for n in (scheme.buckets, scheme.rows, scheme.cols))
    dense = scheme.expand(w)
    np.testing.assert_allclose(expected_transform(scheme, w, x), x @ dense, rtol=0, atol=1e-11)
    np.testing.assert_allclose(expected_transposed(scheme, w, y), dense @ y, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_different_seeds_give_different_maps(name):
    tables = []
    for seed in (0, 1, 2, 2**31, 2**32 - 1):
        bucket, sign = SCHEMES[name](256, 64, 64, seed, 1 if name == "xxh32" else 64).table()
        tables.append((bucket, sign))
    for (bucket, sign), (other_bucket, other_sign) in itertools.combinations(tables, 2):
        assert (bucket != other_bucket).mean() > 0.5
        assert 0.25 < (sign != other_sign).mean() < 0.75


REFUSED = {
    "K 0": (Xxh32, (0, 1, 1, 0, 1), "buckets"),
    "K 2^30": (Xxh32, (2**30, 1, 1, 0, 1), "buckets"),
    "K negative": (Dyadic, (-1, 1, 1, 0, 1), "buckets"),
    "rows 0": (Xxh32, (4, 0, 1, 0, 1), "rows"),
    "rows 2^31": (Dyadic, (4, 2**31, 1, 0, 1), "rows"),
    "cols 0": (Dyadic, (4, 1, 0, 0, 1), "cols"),
    "cols 2^31": (Xxh32, (4, 1, 2**31, 0, 1), "cols"),
    "seed -1": (Xxh32, (4, 1, 1, -1, 1), "seed"),
    "seed 2^32": (Dyadic, (4, 1, 1, 2**32, 1), "seed"),
    "block 0": (Xxh32, (4, 1, 1, 0, 0), "block"),
    "block over K": (Xxh32, (4, 1, 1, 0, 5), "block"),
    "width 0": (Dyadic, (4, 1, 1, 0, 0), "width"),
    "width 3": (Dyadic, (9, 1, 1, 0, 3), "power of two"),
    "width over K": (Dyadic, (4, 1, 1, 0, 8), "width"),
    "width does not divide K": (Dyadic, (6, 1, 1, 0, 4), "divide"),
    "float": (Xxh32, (4, 1.0, 1, 0, 1), "rows"),
    "bool": (Dyadic, (4, 1, 1, True, 1), "seed"),
    "text": (Xxh32, (4, "3", 1, 0, 1), "rows"),
}


@pytest.mark.parametrize(("cls", "arguments", "says"), REFUSED.values(), ids=REFUSED)
def test_parameters_out_of_range_are_refused(cls, arguments, says):
    with pytest.raises(SchemeError, match=says):
        cls(*arguments)


def test_wrong_weight_vector_is_refused():
    with pytest.raises(SchemeError, match="expected \\[4\\]"):
        Xxh32(4, 2, 2, 0).expand(np.zeros(5, np.float32))


def test_names():
    assert scheme_named("dyadic") is Dyadic
    assert {"ExpandXxh32": Xxh32, "ExpandDyadic": Dyadic} == BY_OP_TYPE
    with pytest.raises(SchemeError, match="expected one of xxh32, dyadic"):
        scheme_named("robe")


@settings(max_examples=200, deadline=None)
@given(
    name=st.sampled_from(list(SCHEMES)),
    rows=st.integers(1, 2**31 - 1),
    cols=st.integers(1, 2**31 - 1),
    budget=st.integers(1, 2**31),
    seed=st.integers(0, 2**32 - 1),
)
def test_fit_never_exceeds_its_budget(name, rows, cols, budget, seed):
    scheme = SCHEMES[name].fit(rows, cols, budget, seed)
    assert 1 <= scheme.buckets <= budget
    assert (scheme.rows, scheme.cols, scheme.seed) == (rows, cols, seed)
    if isinstance(scheme, Dyadic):
        allowed = min(budget, 2**30 - 1)
        assert scheme.width == min(1 << (rows - 1).bit_length(), 1 << (allowed.bit_length() - 1))
        assert scheme.groups == min(allowed // scheme.width, cols)


@pytest.mark.parametrize("name", list(SCHEMES))
@pytest.mark.parametrize("budget", [0, -3])
def test_fit_refuses_an_empty_budget(name, budget):
    with pytest.raises(SchemeError, match="budget"):
        SCHEMES[name].fit(4, 4, budget, 0)
