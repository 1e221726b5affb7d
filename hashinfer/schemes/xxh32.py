"""ExpandXxh32: the HashedNets scheme with the paper's hash function, one hash for each run of `block` outputs."""

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from hashinfer.schemes.base import MAX_BUCKETS, Ints, Scheme, check_budget, check_range
from hashinfer.schemes.bits import XXH_PRIME2, XXH_PRIME3, XXH_PRIME4, XXH_PRIME5, xxh32_pair
from hashinfer.schemes.text import NUMBERS, constant, shift


@dataclass(frozen=True, slots=True)
class Xxh32(Scheme):
    """W[i, j] = (1 - 2 (slot mod 2)) w[slot div 2 + t], slot uniform over 2 (K - block + 1) signed slots.

    1 <= block <= K. block = 1 is HashedNets; longer runs are the idea of ROBE and ROAST (Desai et al., 2022).
    """

    block: int = 1

    name: ClassVar[str] = "xxh32"
    op_type: ClassVar[str] = "ExpandXxh32"
    parameter: ClassVar[str] = "block"

    def _check_parameter(self) -> None:
        check_range("block", self.block, 1, self.buckets)

    @property
    def slots(self) -> int:
        """2 (K - block + 1), below 2^31."""
        return 2 * (self.buckets - self.block + 1)

    def cell(self, i: int, j: int) -> tuple[int, int]:
        run, t = divmod(j, self.block)
        slot = (xxh32_pair(i, run, self.seed) * self.slots) >> 32
        return slot // 2 + t, 1 - 2 * (slot % 2)

    def cells(self, i: npt.ArrayLike, j: npt.ArrayLike) -> tuple[Ints, npt.NDArray[np.int8]]:
        rows, cols = np.asarray(i, np.uint64), np.asarray(j, np.uint64)
        run, t = cols // np.uint64(self.block), cols % np.uint64(self.block)
        slot = (xxh32_pair(rows, run, self.seed) * np.uint64(self.slots)) >> np.uint64(32)
        return ((slot >> np.uint64(1)) + t).astype(np.int64), 1 - 2 * (slot & np.uint64(1)).astype(np.int8)

    @classmethod
    def fit(cls, rows: int, cols: int, budget: int, seed: int, parameter: int | None = None) -> Self:
        check_budget(rows, cols, budget)
        return cls(min(budget, rows * cols, MAX_BUCKETS), rows, cols, seed, 1 if parameter is None else parameter)

    @classmethod
    def body_cells(cls) -> str:
        return f"""\
{constant("prime2", "uint32", XXH_PRIME2)}
{constant("prime3", "uint32", XXH_PRIME3)}
{constant("prime4", "uint32", XXH_PRIME4)}
{constant("prime5", "uint32", XXH_PRIME5)}
{constant("eight", "uint32", 8)}
{NUMBERS}
run = Constant <value_int: int = @block> ()
seed64 = Constant <value_int: int = @seed> ()
seed32 = Cast <to: int = 12> (seed64)
i_range = Range (zero, m, one)
j = Range (zero, n, one)
b64 = Div (j, run)
t = Mod (j, run)
i64 = Unsqueeze (i_range, one)
i = Cast <to: int = 12> (i64)
b = Cast <to: int = 12> (b64)
# XXH32 of eight bytes: two rounds of four bytes, then the avalanche.
start0 = Add (seed32, prime5)
start = Add (start0, eight)
i_mul = Mul (i, prime3)
r0 = Add (start, i_mul)
{_rotl17_text("r0", "r1")}
r2 = Mul (r1, prime4)
b_mul = Mul (b, prime3)
r3 = Add (r2, b_mul)
{_rotl17_text("r3", "r4")}
r5 = Mul (r4, prime4)
{shift("r5_15", "r5", "RIGHT", 15)}
r6 = BitwiseXor (r5, r5_15)
r7 = Mul (r6, prime2)
{shift("r7_13", "r7", "RIGHT", 13)}
r8 = BitwiseXor (r7, r7_13)
r9 = Mul (r8, prime3)
{shift("r9_16", "r9", "RIGHT", 16)}
hash = BitwiseXor (r9, r9_16)
# Signed slots: the high half of a 64-bit product.
hash64 = Cast <to: int = 13> (hash)
buckets = Size (w)
spare = Sub (buckets, run)
starts = Add (spare, one)
slots = Add (starts, starts)
slots64 = Cast <to: int = 13> (slots)
product = Mul (hash64, slots64)
{shift("slot_u", "product", "RIGHT", 32, "uint64")}
slot = Cast <to: int = 7> (slot_u)
start_bucket = Div (slot, two)
negative = Mod (slot, two)
bucket = Add (start_bucket, t)"""


def _rotl17_text(source: str, target: str) -> str:
    left, right = f"{source}_l17", f"{source}_r15"
    return f"""\
{shift(left, source, "LEFT", 17)}
{shift(right, source, "RIGHT", 15)}
{target} = BitwiseOr ({left}, {right})"""
