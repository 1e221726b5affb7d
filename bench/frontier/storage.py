"""Bytes that a compressed layer takes, and how its numbers are rounded to fewer bits.

Indices of a pruned matrix are stored in whichever of three forms is smallest: a bit for each place, or the distance
from one kept number to the next in 8 or in 16 bits, where a distance that does not fit is bridged by stored zeros (Han
et al., "Deep Compression", 2016). Numbers of `bits` bits have one float32 scale for each column, or one for a weight
vector.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

FORMATS = {"float32": 32, "float16": 16, "int8": 8, "int4": 4, "int2": 2}
"""Bits of a stored number."""
SCALE_BYTES = 4
SEED_BYTES = 4


def number_bytes(count: int, kind: str, scales: int) -> int:
    """Bytes of `count` numbers side by side in one of FORMATS; integers have `scales` scales."""
    bits = FORMATS[kind]
    return -(-count * bits // 8) + (SCALE_BYTES * scales if bits < 16 else 0)


def rounded(values: Floats, kind: str) -> Floats:
    """`values` [m, n] as FORMATS store them, with a scale for each column: symmetric, round to nearest.

    Of 2 bits, the levels are -1, 0 and 1 (Li et al., "Ternary Weight Networks", 2016: zero below 0.7 of the mean
    magnitude, the scale the mean of what is above).
    """
    if kind == "float32":
        return values
    if kind == "float16":
        return values.astype(np.float16).astype(np.float32)
    magnitude = np.abs(values)
    if kind == "int2":
        kept = magnitude > 0.7 * magnitude.mean(0)
        scale = np.where(kept, magnitude, 0).sum(0) / np.maximum(kept.sum(0), 1)
        return np.asarray(np.sign(values) * kept * scale, np.float32)
    most = 2 ** (FORMATS[kind] - 1) - 1
    scale = np.maximum(magnitude.max(0), np.finfo(np.float32).tiny) / most
    return np.asarray(np.rint(values / scale) * scale, np.float32)


def index_bytes(mask: Mask, bits: int) -> int:
    """Bytes of the places of a pruned matrix's kept numbers and of the zeros stored as bridges, of `bits` bits each."""
    flat = np.flatnonzero(mask)
    gaps = np.diff(flat, prepend=-1)
    forms = [-(-mask.size // 8)]
    for width in (8, 16):
        bridges = int(((gaps - 1) // 2**width).sum())
        forms.append(width // 8 * (len(flat) + bridges) + -(-bridges * bits // 8))
    return min(forms)


@dataclass(frozen=True)
class Layer:
    """What is stored of one layer: `numbers` weights in a format, `columns` of them if integers have scales by column.

    biases: float32 numbers beside them; mask: the kept places of a pruned matrix; seed: whether it is a hashed one.
    """

    numbers: int
    columns: int
    biases: int = 0
    mask: Mask | None = None
    seed: bool = False

    @property
    def kept(self) -> int:
        """Weights that are not pruned."""
        return self.numbers if self.mask is None else int(self.mask.sum())

    def size(self, kind: str) -> int:
        """Bytes."""
        indices = 0 if self.mask is None else index_bytes(self.mask, FORMATS[kind])
        seed = SEED_BYTES if self.seed else 0
        return number_bytes(self.kept, kind, self.columns) + 4 * self.biases + indices + seed
