"""Vector intrinsics against their scalar twins, and the pruned transform against the whole one."""

from __future__ import annotations

import numpy as np
import pytest

from hashinfer.kernels import dyadic, elementwise, hadamard, hashing, intrinsics, isa
from hashinfer.kernels.isa import MOST_LANES, RADIX
from hashinfer.kernels.jit import device
from hashinfer.schemes import Xxh32
from tests import naive

ODD = np.array([-np.inf, -2, -1e-30, -0.0, 0, 1e-45, 3, np.inf, np.nan, -7, 8, 9, 10, 11, 12, -13], np.float32)


def whole(count: int, seed: int = 0) -> np.ndarray:
    """Whole numbers as float32: sums of them are exact in any order."""
    return np.random.default_rng(seed).integers(-50, 51, count).astype(np.float32)


@device
def summaries(x, largest, out):
    value = intrinsics.load16(x, 0)
    out[0] = intrinsics.sum16(value)
    out[1] = np.float32(intrinsics.nonzero16(value))
    intrinsics.store16(out, 2, intrinsics.largest16(intrinsics.load16(largest, 0), value))


def test_sum_nonzero_and_largest():
    out, largest = np.empty(18, np.float32), np.abs(whole(16, 1)) / 16
    summaries(whole(16), largest, out)
    assert out[0] == whole(16).sum()
    assert np.array_equal(out[2:], np.maximum(np.abs(whole(16)), largest))
    summaries(ODD, largest, out)
    assert out[1] == 14
    expected = [max(m.view(np.uint32), np.abs(v).view(np.uint32)) for m, v in zip(largest, ODD, strict=True)]
    assert out[2:].view(np.uint32).tolist() == [int(v) for v in expected]


@device
def larger_and_even(a, b, out):
    intrinsics.store16(out, 0, intrinsics.max16(intrinsics.load16(a, 0), intrinsics.load16(b, 0)))
    intrinsics.store16(out, 16, intrinsics.load_even16(a, 3))


@pytest.mark.parametrize("turn", range(16))
def test_max_and_every_other(turn):
    a, out = np.concatenate([np.roll(ODD, turn), whole(20)]), np.empty(32, np.float32)
    larger_and_even(a, ODD, out)
    np.testing.assert_array_equal(out[:16], np.maximum(a[:16], ODD))
    np.testing.assert_array_equal(out[16:], a[3:35:2])


@device
def stored_lanes(x, first, count, out):
    intrinsics.store_lanes16(out, 20, intrinsics.load16(x, 0), first, count)


def test_stored_lanes_touch_nothing_else():
    x = whole(16)
    for first in range(16):
        for count in range(17 - first):
            out = np.full(60, 77, np.float32)
            stored_lanes(x, first, count, out)
            expected = np.full(60, 77, np.float32)
            expected[20 : 20 + count] = x[first : first + count]
            assert np.array_equal(out, expected)


@device
def loaded_lanes(x, first, count, out):
    intrinsics.store16(out, 0, intrinsics.load_lanes16(x, 5, first, count))


def test_loaded_lanes_read_nothing_else():
    x = whole(30)
    for first in range(17):
        for count in range(17 - first):
            out, expected = np.full(16, 77, np.float32), np.zeros(16, np.float32)
            loaded_lanes(x, first, count, out)
            expected[first : first + count] = x[5 + first : 5 + first + count]
            assert np.array_equal(out, expected)


@device
def words(first, step, amount, out):
    intrinsics.store16(out, 0, intrinsics.ramp16(first, step))
    intrinsics.store16(out, 16, intrinsics.add_word16(intrinsics.load16(out, 0), amount))


def test_words_wrap_around():
    out = np.empty(32, np.uint32)
    words(np.uint32(2**32 - 5), np.uint32(0x9E3779B1), np.uint32(2**31 + 9), out)
    ramp = [(2**32 - 5 + lane * 0x9E3779B1) % 2**32 for lane in range(16)]
    assert out.tolist() == ramp + [(r + 2**31 + 9) % 2**32 for r in ramp]


@device
def hashed(prefix, b, slots, values, out, found):
    intrinsics.store16(found, 0, intrinsics.xxh32_slots16(hashing.column_words16(prefix, b), slots))
    flipped = intrinsics.flip_odd16(intrinsics.load16(values, 0), intrinsics.load16(found, 0))
    intrinsics.store16(out, 0, flipped)


@pytest.mark.parametrize("b", [0, 1, 2**16 - 5, 2**31 - 17])
@pytest.mark.parametrize(("seed", "i", "buckets"), [(0, 0, 1), (1, 2**31 - 2, 2**30 - 1), (2**32 - 1, 7, 12345)])
def test_sixteen_hashes_are_the_scheme(seed, i, buckets, b):
    scheme, found, out = Xxh32(buckets, 2**31 - 1, 2**31 - 1, seed, 1), np.empty(16, np.int32), np.empty(16, np.float32)
    values = np.arange(1, 17, dtype=np.float32)
    prefix = hashing.xxh32_prefix(np.int64(i), np.uint32(seed))
    hashed(np.uint32(prefix), np.int64(b), np.uint32(2 * buckets), values, out, found)
    cells = [scheme.cell(i, b + lane) for lane in range(16)]
    assert [int(f) >> 1 for f in found.view(np.uint32)] == [bucket for bucket, _ in cells]
    assert out.tolist() == [v * sign for v, (_, sign) in zip(values, cells, strict=True)]


@device
def from_bytes(x, flip, less, out):
    intrinsics.store16(out, 0, intrinsics.bytes16(x, 3, flip))
    words = intrinsics.byte_words16(x, 3, flip)
    intrinsics.store16(out, 16, words)
    intrinsics.store16(out, 32, intrinsics.byte_pairs16(x, 5, 30, flip, words))
    intrinsics.store16(out, 48, intrinsics.byte_run16(x, 7, flip, less))
    halves = intrinsics.pair16(intrinsics.load16(out, 0), intrinsics.bytes16(x, 20, flip))
    intrinsics.store16(out, 64, halves)


@device
def multiply(rows, tile, sums):
    intrinsics.products4(rows, 2, 9, 2, 7, tile, 3, sums, 5, 70)


@pytest.mark.parametrize("words", [False, True])
def test_products_of_four_rows(words):
    """Every other number of rows 9 apart, by columns from the third on; both those and the sums are rows of 70."""
    rng, wide = np.random.default_rng(4), 16 * isa.TILE_VECTORS
    rows, tile, sums = (rng.integers(-300, 300, n).astype(np.int16) for n in (2 * 45, 2 * 560, 2 * 350))
    if words:
        a, b, c = rows.view(np.int32), tile.view(np.int32), sums.view(np.int32)
        left, right = rows.reshape(-1, 2).astype(int), tile.reshape(-1, 2).astype(int)
    else:
        a, b, c = (v[::2].astype(np.float32) for v in (rows, tile, sums))
        left, right = a[:, None], b[:, None]
    expected = c.copy()
    for r in range(4):
        for column in range(wide):
            for i in range(7):
                expected[5 + 70 * r + column] += (left[2 + 9 * r + 2 * i] * right[3 + 70 * i + column]).sum()
    multiply(a, b, c)
    assert c.tolist() == expected.tolist()


@pytest.mark.parametrize("flip", [0, 128])
@pytest.mark.parametrize("seed", range(3))
def test_bytes_as_floats_and_as_words_of_two(flip, seed):
    x, out = np.random.default_rng(seed).integers(0, 256, 60).astype(np.uint8), np.empty(80, np.float32)
    x[8:11] = 0, 255, 128
    less, wide = 77, (x ^ np.uint8(flip)).astype(int)
    from_bytes(x, np.uint8(flip), np.uint16(less), out)
    assert out[:16].tolist() == wide[3:19].tolist()
    words = out.view(np.int32).reshape(5, 16)
    assert words[1].tolist() == wide[3:19].tolist()

    def paired(low, high):
        return np.stack([low, high], 1).astype(np.int16).view(np.int32)[:, 0].tolist()

    assert words[2].tolist() == paired(wide[5:21] - wide[3:19], wide[30:46] - wide[3:19])
    assert words[3].tolist() == paired(wide[7:39:2] - less, wide[8:40:2] - less)
    assert words[4].tolist() == paired(wide[3:19], wide[20:36])


def picked(w, slots, out):
    intrinsics.store16(out, 0, intrinsics.pick16(w, slots, 1))
    intrinsics.store16(out, 16, intrinsics.weights16(w, 3))


@pytest.mark.parametrize("gathers", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_weights_of_each_dtype(dtype, gathers, monkeypatch):
    if gathers and isa.ISA != isa.AVX512:
        pytest.skip("the gather is AVX-512's")
    monkeypatch.setattr(intrinsics, "GATHERS", gathers)
    rng = np.random.default_rng(0)
    w = rng.integers(-128, 128, 40).astype(np.int8)
    if dtype == "float16":
        w = rng.integers(0, 2**16, 40).astype(np.uint16).view(np.float16)
        w[3:13] = [0, -0.0, 2**-24, -(2**-24), 65504, np.inf, -np.inf, np.nan, 1, 2**-14]
    if dtype == "float32":
        w = np.concatenate([ODD, whole(24)])
    slots = rng.integers(0, 80, 17).astype(np.int32)
    slots[1:4] = [0, 79, 78]
    out = np.empty(32, np.float32)
    device(picked)(w.view(np.uint16) if dtype == "float16" else w, slots, out)
    np.testing.assert_array_equal(out[:16], w[slots[1:] >> 1].astype(np.float32))
    np.testing.assert_array_equal(out[16:], w[3:19].astype(np.float32))


@device
def radix(which, v, at, step):
    if which == 2:
        intrinsics.butterflies2(v, at, step)
    elif which == 4:
        intrinsics.butterflies4(v, at, step)
    elif which == 8:
        intrinsics.butterflies8(v, at, step)
    else:
        intrinsics.butterflies16(v, at, step)


@pytest.mark.parametrize("count", [2, 4, 8, 16])
def test_butterflies(count):
    v = whole(16 * 40)
    out, taken = v.copy(), [16 * (3 + 2 * k) for k in range(count)]
    radix(count, out, 48, 32)
    block = np.array([v[at : at + 16] for at in taken])
    transformed = naive.hadamard_matrix(count) @ block
    expected = v.copy()
    for at, row in zip(taken, transformed, strict=True):
        expected[at : at + 16] = row
    assert np.array_equal(out, expected)


@device
def eight_columns(x, first, v, at, step):
    intrinsics.columns8(x, np.int32(first), v, np.int32(at), np.int32(step))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_columns_of_eight(dtype):
    x = whole(200, 3).astype(dtype)
    v = whole(200)
    expected, step = v.copy(), 11
    for c in range(4):
        column = naive.hadamard_matrix(8) @ x[5 + c : 5 + c + 8 * step : step].astype(np.float32)
        expected[17 + c : 17 + c + 8 * step : step] = column
    eight_columns(x.view(np.uint16) if dtype == "float16" else x, 5, v, 17, step)
    assert np.array_equal(v, expected)


@device
def transposed(x, at, step, y, to, y_step):
    intrinsics.transpose16(x, at, step, y, to, y_step)


def test_transpose():
    x, y = whole(16 * 19 + 3), np.full(16 * 23 + 5, 77, np.float32)
    expected = y.copy()
    for i in range(16):
        for k in range(16):
            expected[5 + 23 * i + k] = x[3 + 19 * k + i]
    transposed(x, 3, 19, y, 5, 23)
    assert np.array_equal(y, expected)


@device
def one_sum(v, at, count, beta, out):
    intrinsics.store16(out, 0, hadamard.signed_sum(v, at, count, beta))


@pytest.mark.parametrize("count", [1, 2, 4, 8, 16, 32, 128])
def test_signed_sums_are_rows_of_the_transform(count):
    v, out = whole(16 * (count + 2)), np.empty(16, np.float32)
    matrix = naive.hadamard_matrix(count)
    for beta in range(count):
        one_sum(v, 16, count, beta, out)
        assert np.array_equal(out, matrix[beta] @ v[16 : 16 + 16 * count].reshape(count, 16))


@pytest.mark.parametrize("lanes", [n for n in (1, 2, 4, 8, 16) if n <= MOST_LANES])
def test_first_pass_and_the_rest_are_the_transform_of_the_product(lanes):
    width = 4 * RADIX * 16 // lanes
    vectors, block = width * lanes // 16, 4
    spectrum, u = whole(width * lanes), np.concatenate([whole(width, 1), np.full(16, np.nan, np.float32)])
    stored = spectrum.reshape(RADIX, block, 16).swapaxes(0, 1).ravel().copy()
    v = np.full(16 * (vectors + RADIX), 77, np.float32)
    dyadic._first_pass(stored, 0, u, v, lanes, block, 0, block)
    for r in range(RADIX):
        hadamard.passes(v, r * (block + 1), 2, 0)
    rows = v.reshape(RADIX, block + 1, 16)
    assert (rows[:, block] == 77).all()
    product = spectrum.reshape(width, lanes).astype(np.float64) * u[:width, None]
    expected = naive.hadamard_matrix(width) @ product
    assert np.array_equal(rows[:, :block].reshape(width, lanes), expected)


@pytest.mark.parametrize("vectors", [RADIX, 8 * RADIX, 256 * RADIX, 2**14 * RADIX])
@pytest.mark.parametrize("outputs", [1, 11, 100, 10000])
def test_tails_are_powers_of_two_inside_a_block(vectors, outputs):
    tail = dyadic.best_tail(vectors, 16, outputs)
    assert tail & (tail - 1) == 0
    assert 1 <= tail <= min(vectors // RADIX, 2**12)


@pytest.mark.parametrize("groups", [*range(1, 34), 95])
@pytest.mark.parametrize(("width", "outputs"), [(1, 7), (64, 500), (1024, 1000), (4096, 100000)])
def test_chunks_cover_each_group_once(groups, width, outputs):
    table = dyadic.chunk_table(groups, width, outputs).tolist()
    first, start = 0, 0
    for at, lanes, place, _ in table:
        assert (at, place) == (first, start)
        assert lanes in (1, 2, 4, 8, 16)
        assert at < groups
        first, start = first + lanes, start + width * lanes
    assert groups <= first < groups + 16


def test_elementwise_operations_by_name():
    a, b = np.float32(7), np.float32(-2)
    assert [float(elementwise.apply(k, a, b)) for k in range(4)] == [5, 9, -14, -3.5]
