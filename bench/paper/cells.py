"""What is trained: the cells of the paper's tables and of its Figure 4, and how many numbers each may store."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from bench.paper.sets import GREY, NAMES, SIDE
from hashinfer.schemes import Dyadic, Scheme, scheme_named

PIXELS = SIDE * SIDE
WIDE = 1000
DEPTHS = (3, 5)
RATIOS = (8, 64)
SCHEMES = ("xxh32", "dyadic")
OUT_BUCKETS = 65536
"""K of the output layer times the compression factor, where that many virtual weights exist: 8192 buckets at 1/8 and
1024, one for each of 1001 inputs, at 1/64."""

TEACHER, NN, DK, HASHNET, HASHNET_DK = "full", "NN", "DK", "HashNet", "HashNet_DK"
INFLATED_UNITS = 50
INFLATIONS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Cell:
    """One net to train.

    data: the set's name. depth: 3 or 5 layers of units, so 1 or 3 hidden ones. ratio: the compression factor of
    a table's cell, 1 for the full net; inflation: virtual over stored units in Figure 4, 0 for a table's cell.
    """

    data: str
    depth: int
    ratio: int
    method: str
    scheme: str = ""
    seed: int = 1
    inflation: int = 0

    @property
    def name(self) -> str:
        """A name for files and for the screen, one for each cell."""
        size = f"x{self.inflation}" if self.inflation else f"c{self.ratio}"
        parts = (self.data, f"{self.depth}L", size, self.method, self.scheme, f"s{self.seed}")
        return "-".join(p for p in parts if p).lower()

    @property
    def distilled(self) -> bool:
        """Whether it learns from the full-size net as well."""
        return self.method in (DK, HASHNET_DK)

    @property
    def teacher(self) -> Cell:
        """The full-size net of the same set, depth and seed."""
        return Cell(self.data, self.depth, 1, TEACHER, seed=self.seed)

    @property
    def classes(self) -> int:
        """10 digits, or 2 for the geometric sets."""
        return 2 if self.data in ("RECT", "CONVEX") else 10

    @property
    def budget(self) -> int:
        """The numbers that may be stored, biases included."""
        if self.inflation:
            return numbers([PIXELS, INFLATED_UNITS, self.classes])
        return numbers([PIXELS, *[WIDE] * (self.depth - 2), self.classes]) // self.ratio

    @property
    def units(self) -> list[int]:
        """Units of every layer, the inputs first: virtual ones for a hashed net."""
        if self.scheme:
            wide = INFLATED_UNITS * self.inflation if self.inflation else WIDE
        else:
            wide = widest(self.depth - 2, self.classes, self.budget)
        return [PIXELS, *[wide] * (self.depth - 2), self.classes]

    @property
    def gains(self) -> int:
        """Stored gains of inputs: a hashed net of grey inputs, which shares their weights, has one for each."""
        return PIXELS if self.scheme and self.data in GREY else 0

    def schemes(self) -> list[Scheme]:
        """The schemes of a hashed net's layers. Each W has one more row than inputs: the biases, hashed as well.

        The output layer's buckets come from OUT_BUCKETS, the others share by their virtual sizes what gains leave.
        """
        kind = scheme_named(self.scheme)
        shapes = [(m + 1, n) for m, n in pairwise(self.units)]
        *hidden, (rows, cols) = shapes
        last = min(round(OUT_BUCKETS * self.budget / numbers(self.units)), rows * cols)
        rest = self.budget - self.gains - last
        # A dyadic layer's K is a multiple of its width, which is the same for all hidden layers of these nets.
        step = 1 << (hidden[0][0] - 1).bit_length() if kind is Dyadic else 1
        counts = shares(rest // step, [m * n for m, n in hidden])
        seeds = np.random.default_rng([self.seed, self.depth]).integers(0, 2**32, len(shapes)).tolist()
        found = [kind.fit(m, n, k * step, s) for (m, n), k, s in zip(hidden, counts, seeds, strict=False)]
        left = self.budget - self.gains - sum(s.buckets for s in found)
        return [*found, kind.fit(rows, cols, min(left, rows * cols), seeds[-1])]


def numbers(units: list[int]) -> int:
    """Weights and biases of a dense net."""
    return sum((m + 1) * n for m, n in pairwise(units))


def widest(hidden: int, classes: int, budget: int) -> int:
    """The most units that each of `hidden` equal layers may have in a dense net of at most `budget` numbers."""
    wide = 1
    while numbers([PIXELS, *[wide + 1] * hidden, classes]) <= budget:
        wide += 1
    return wide


def shares(total: int, sizes: list[int]) -> list[int]:
    """`total` split in proportion to `sizes` into whole numbers, largest remainders first."""
    exact = [total * size / sum(sizes) for size in sizes]
    whole = [int(e) for e in exact]
    order = sorted(range(len(sizes)), key=lambda k: whole[k] - exact[k])
    for k in order[: total - sum(whole)]:
        whole[k] += 1
    return whole


def block(data: str, depth: int, ratios: tuple[int, ...] = RATIOS, seed: int = 1) -> list[Cell]:
    """All cells of one set and depth, the teacher first."""
    cells = [Cell(data, depth, 1, TEACHER, seed=seed)]
    for ratio in ratios:
        cells += [Cell(data, depth, ratio, method, seed=seed) for method in (NN, DK)]
        cells += [
            Cell(data, depth, ratio, method, scheme, seed) for method in (HASHNET, HASHNET_DK) for scheme in SCHEMES
        ]
    return cells


def inflation() -> list[Cell]:
    """The paper's Figure 4: the storage of a dense net of 50 hidden units, spread over ever more virtual ones."""
    dense = Cell("MNIST", 3, 1, NN, inflation=1)
    return [dense, *(Cell("MNIST", 3, 1, HASHNET, s, inflation=f) for f in INFLATIONS for s in SCHEMES)]


def plan() -> list[Cell]:
    """Every cell, in the order of what is worth knowing first."""
    main = ("ROT", "RECT", "MNIST", "CONVEX", "BASIC", "BG-RAND")
    photographs = ("BG-IMG", "BG-IMG-ROT")
    order = [cell for name in main for cell in block(name, 3)]
    order += inflation()
    order += [cell for ratio in (64, 8) for name in main for cell in block(name, 5, (ratio,))]
    order += [cell for name in photographs for cell in block(name, 3)]
    order += [cell for seed in (2, 3) for name in ("ROT", "MNIST") for cell in block(name, 3, seed=seed)]
    order += [cell for name in photographs for cell in block(name, 5)]
    assert {cell.data for cell in order} == set(NAMES)
    return list(dict.fromkeys(order))
