"""ExpandDyadic: an XOR hash whose virtual matrix is diagonal, group by group, under the Walsh-Hadamard transform."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from hashinfer.errors import SchemeError
from hashinfer.schemes.base import MAX_BUCKETS, Ints, Scheme, check_budget, check_range
from hashinfer.schemes.bits import FMIX_MUL1, FMIX_MUL2, XXH_PRIME1, XXH_PRIME2, Bits, fmix32
from hashinfer.schemes.text import NUMBERS, constant, shift

PERM_MUL = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)
ROW_MUL, COL_MUL, COL_SALT = XXH_PRIME1, XXH_PRIME2, 0x5BD1E995


@dataclass(frozen=True, slots=True)
class Dyadic(Scheme):
    """W[i, j] = s(i) r(j) w[g width + ((i mod width) XOR perm(t))], g = j mod G, t = j div G, G = K / width.

    width is a power of two that divides K. Each group's virtual matrix is dyadic: with H the Walsh-Hadamard
    matrix of size width and u[k] = sum of s(i) x[i] over i = k (mod width),

        (x @ W)[j] = r(j) (H ((H w_g) . (H u)) / width)[perm(t)].

    Within a row no two inputs share a bucket while rows <= width; rows i and i + width are equal up to sign.
    """

    width: int

    name: ClassVar[str] = "dyadic"
    op_type: ClassVar[str] = "ExpandDyadic"
    parameter: ClassVar[str] = "width"

    def _check_parameter(self) -> None:
        check_range("width", self.width, 1, self.buckets)
        if self.width & (self.width - 1):
            raise SchemeError(f"width is {self.width}; expected a power of two")
        if self.buckets % self.width:
            raise SchemeError(f"width {self.width} does not divide the {self.buckets} buckets of the weight vector")

    @property
    def groups(self) -> int:
        """G = K / width."""
        return self.buckets // self.width

    def permute(self, t: Bits) -> Bits:
        """perm(t): t mod width through a bijection of [0, width) that depends on the seed."""
        mask = self.width - 1
        half = self.width.bit_length() // 2
        f = fmix32(self.seed)
        x = t & mask
        for multiplier, offset in zip(PERM_MUL, (f, f >> 10, f >> 20), strict=True):
            x = (((x + offset) & mask) * multiplier) & mask
            if half:
                x = x ^ (x >> half)
        return x

    def row_negative(self, i: Bits) -> Bits:
        """1 where s(i) is -1, else 0."""
        return fmix32(i * ROW_MUL + self.seed) >> 31

    def col_negative(self, j: Bits) -> Bits:
        """1 where r(j) is -1, else 0."""
        return fmix32(j * COL_MUL + (self.seed ^ COL_SALT)) >> 31

    def cell(self, i: int, j: int) -> tuple[int, int]:
        t, g = divmod(j, self.groups)
        bucket = g * self.width + ((i % self.width) ^ self.permute(t))
        return bucket, 1 - 2 * (self.row_negative(i) ^ self.col_negative(j))

    def cells(self, i: npt.ArrayLike, j: npt.ArrayLike) -> tuple[Ints, npt.NDArray[np.int8]]:
        rows, cols = np.asarray(i, np.uint64), np.asarray(j, np.uint64)
        t, g = cols // np.uint64(self.groups), cols % np.uint64(self.groups)
        within = (rows & np.uint64(self.width - 1)) ^ self.permute(t)
        negative = self.row_negative(rows) ^ self.col_negative(cols)
        bucket = (g * np.uint64(self.width) + within).astype(np.int64)
        return bucket, 1 - 2 * negative.astype(np.int8)

    @classmethod
    def fit(cls, rows: int, cols: int, budget: int, seed: int, parameter: int | None = None) -> Self:
        check_budget(rows, cols, budget)
        budget = min(budget, MAX_BUCKETS)
        width = parameter
        if width is None:
            width = min(1 << (rows - 1).bit_length(), 1 << (budget.bit_length() - 1))
        check_range("width", width, 1, budget)
        return cls(min(budget // width, cols) * width, rows, cols, seed, width)

    @classmethod
    def body_cells(cls) -> str:
        return f"""\
{NUMBERS}
width = Constant <value_int: int = @width> ()
seed64 = Constant <value_int: int = @seed> ()
seed = Cast <to: int = 12> (seed64)
buckets = Size (w)
groups = Div (buckets, width)
i_range = Range (zero, m, one)
j64 = Range (zero, n, one)
i64 = Unsqueeze (i_range, one)
i = Cast <to: int = 12> (i64)
j = Cast <to: int = 12> (j64)
g = Mod (j64, groups)
t64 = Div (j64, groups)
t = Cast <to: int = 12> (t64)
mask64 = Sub (width, one)
mask = Cast <to: int = 12> (mask64)
# half = ceil(log2(width) / 2), by counting the powers of two below width.
{constant("powers", "int64", *(1 << k for k in range(30)))}
above = Greater (width, powers)
above64 = Cast <to: int = 7> (above)
bits = ReduceSum <keepdims: int = 0> (above64)
bits1 = Add (bits, one)
half64 = Div (bits1, two)
half = Cast <to: int = 12> (half64)
{_fmix32_text("f", "seed")}
{shift("f10", "f", "RIGHT", 10)}
{shift("f20", "f", "RIGHT", 20)}
{_perm_round_text("t", "f", PERM_MUL[0], "perm0")}
{_perm_round_text("perm0", "f10", PERM_MUL[1], "perm1")}
{_perm_round_text("perm1", "f20", PERM_MUL[2], "perm")}
i_low = BitwiseAnd (i, mask)
within = BitwiseXor (i_low, perm)
within64 = Cast <to: int = 7> (within)
group_start = Mul (g, width)
bucket = Add (group_start, within64)
{constant("row_mul", "uint32", ROW_MUL)}
{constant("col_mul", "uint32", COL_MUL)}
{constant("col_salt", "uint32", COL_SALT)}
i_mul = Mul (i, row_mul)
i_key = Add (i_mul, seed)
{_fmix32_text("i_hash", "i_key")}
{shift("i_negative", "i_hash", "RIGHT", 31)}
j_mul = Mul (j, col_mul)
j_seed = BitwiseXor (seed, col_salt)
j_key = Add (j_mul, j_seed)
{_fmix32_text("j_hash", "j_key")}
{shift("j_negative", "j_hash", "RIGHT", 31)}
negative_u = BitwiseXor (i_negative, j_negative)
negative = Cast <to: int = 7> (negative_u)"""


def _fmix32_text(target: str, source: str) -> str:
    p = f"{target}_"
    return f"""\
{shift(f"{p}s1", source, "RIGHT", 16)}
{p}x1 = BitwiseXor ({source}, {p}s1)
{constant(f"{p}c1", "uint32", FMIX_MUL1)}
{p}m1 = Mul ({p}x1, {p}c1)
{shift(f"{p}s2", f"{p}m1", "RIGHT", 13)}
{p}x2 = BitwiseXor ({p}m1, {p}s2)
{constant(f"{p}c2", "uint32", FMIX_MUL2)}
{p}m2 = Mul ({p}x2, {p}c2)
{shift(f"{p}s3", f"{p}m2", "RIGHT", 16)}
{target} = BitwiseXor ({p}m2, {p}s3)"""


def _perm_round_text(source: str, offset: str, multiplier: int, target: str) -> str:
    p = f"{target}_"
    return f"""\
{p}a = Add ({source}, {offset})
{p}am = BitwiseAnd ({p}a, mask)
{constant(f"{p}c", "uint32", multiplier)}
{p}m = Mul ({p}am, {p}c)
{p}mm = BitwiseAnd ({p}m, mask)
{p}s = BitShift <direction: string = "RIGHT"> ({p}mm, half)
{target} = BitwiseXor ({p}mm, {p}s)"""
