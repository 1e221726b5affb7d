"""Every kernel that could compute a hashed product, timed alone: its rate, its share of the machine's limit, the pick.

A rate counts virtual weights: rows of x times rows and cols of W, a second. The share is the time that the unit which a
kernel keeps busiest would need at its peak (bench.limits), over the time taken; see `demands`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log2
from typing import Any

import numpy as np

from bench.limits import Limits
from bench.nets import COMPRESSIONS, SCHEMES, Variant
from bench.peers import DisagreementError
from bench.timing import Run, Spread, alternate, once, ratios
from hashinfer.kernels.pool import Program
from hashinfer.ops.emission import Buffer, Emission, aligned_empty, assemble
from hashinfer.ops.hashed import candidates
from hashinfer.ops.matrix import HashedMatrix
from hashinfer.ops.product import Rows
from hashinfer.schemes import Dyadic, Scheme, Xxh32

SHAPES = ((256, 256), (784, 1000), (1000, 10), (1024, 1024), (4096, 4096))
ROWS = (1, 8, 64, 512)
ZEROS = (0.0, 0.8)
GOOD_ENOUGH = 1.1
"""The planner's pick may take this many times what the fastest candidate takes."""
CHECKED, TOLERANCE = 24, 1e-4
TRIED = 3


@dataclass(frozen=True, slots=True)
class Grid:
    """The cases. seconds: for each candidate. slowest: seconds; a call that takes longer is left out.

    Where a call should take TRIED times that by fewer rows, it is not even tried.
    """

    shapes: tuple[tuple[int, int], ...] = SHAPES
    compressions: tuple[int, ...] = COMPRESSIONS
    rows: tuple[int, ...] = ROWS
    zeros: tuple[float, ...] = ZEROS
    seconds: float = 0.06
    slowest: float = 0.4


QUICK = Grid(((256, 256), (784, 1000), (1024, 1024)), COMPRESSIONS[:1], (1, 64), (0.0,), 0.03, 0.1)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a kernel cannot do without, by unit: so many a call."""

    unit: str
    amount: float


def cases(grid: Grid) -> Iterator[tuple[Variant, tuple[int, int], float]]:
    """Matrices and shares of zero inputs; the numbers of rows are worked through inside `table`."""
    for shape in grid.shapes:
        for compression in sorted(grid.compressions):
            for scheme, block in SCHEMES:
                for zeros in grid.zeros:
                    yield Variant(scheme, block, compression), shape, zeros


def table(
    variant: Variant, shape: tuple[int, int], zeros: float, grid: Grid, limits: Limits
) -> tuple[list[dict[str, Any]], list[str]]:
    """One entry for each number of rows, and what was left out, in words.

    Raises DisagreementError where a kernel's outputs are not those of x @ W.
    """
    rng = np.random.default_rng(shape[0])
    scheme = variant.fit(*shape, seed=3)
    matrix = HashedMatrix(scheme, rng.standard_normal(scheme.buckets, np.float32) / np.float32(np.sqrt(shape[0])))
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    last: dict[str, float] = {}
    for rows in grid.rows:
        x = rng.standard_normal((rows, shape[0]), np.float32)
        x[rng.random(x.shape) < zeros] = 0
        options = options_for(matrix, rows)
        picked = min(options, key=lambda name: options[name].work)
        runs: dict[str, Run] = {}
        needs: dict[str, Demand] = {}
        for name, option in options.items():
            predicted = rows * last.get(name, 0.0)
            where = f"{name}, {shape[0]} x {shape[1]}, {variant.label}, {rows} rows"
            if predicted > TRIED * grid.slowest:
                left_out.append(f"{where}: about {predicted:.1f} s")
                continue
            y = np.empty((rows, shape[1]), np.float32)
            run = bound(option, x, y)
            last[name] = once(run) / rows
            _check(name, scheme, matrix, x, y)
            if rows * last[name] > grid.slowest:
                left_out.append(f"{where}: {rows * last[name]:.1f} s")
                continue
            runs[name] = run
            needs[name] = needed(option, scheme, rows, 1 - zeros, limits)
        samples = alternate(runs, grid.seconds * len(runs))
        times = {name: Spread.of(seconds) for name, seconds in samples.items()}
        last |= {name: spread.median / rows for name, spread in times.items()}
        found.append(
            {
                "shape": list(shape),
                "scheme": variant.scheme_label,
                "compression": variant.compression,
                "rows": rows,
                "zeros": zeros,
                "picked": picked,
                "picked_over_fastest": _over_fastest(picked, samples),
                "kernels": {
                    name: {
                        "us": spread.data(1e6),
                        "virtual_per_second": rows * scheme.virtual_size / spread.median,
                        "unit": needs[name].unit,
                        "share": _seconds(needs[name], limits) / spread.median,
                    }
                    for name, spread in times.items()
                },
            }
        )
    return found, left_out


def _over_fastest(picked: str, samples: Mapping[str, Sequence[float]]) -> float | None:
    """The pick's time over that of the fastest, round by round: 1 where it is that; None where it was left out."""
    if picked not in samples:
        return None
    return max(ratios(samples[picked], other).median for other in samples.values())


def options_for(matrix: HashedMatrix, rows: int) -> dict[str, Emission]:
    """What the planner chooses between for x [rows, inputs] without bias or activation, by kernel name."""
    m, n = matrix.scheme.rows, matrix.scheme.cols
    out: dict[str, Emission] = {}
    for emission in candidates(matrix, Rows(Buffer("in", 0), m, rows, m, n, Buffer("out", 0), n)):
        same = sum(name.partition(" ")[0] == emission.choice for name in out)
        out[emission.choice + (f" ({same + 1})" if same else "")] = emission
    return out


def bound(emission: Emission, x: np.ndarray, y: np.ndarray) -> Run:
    """The emission's kernels over x and y, as a call without arguments to speak of. Compiles them."""
    temps = [aligned_empty(size) for size in emission.temps]
    scratch = aligned_empty(emission.scratch)
    made = assemble(emission.calls)
    for place in made.relocations:
        array = {"in": [x], "out": [y], "temp": temps}[place.buffer.kind][place.buffer.number]
        made.code[place.step, place.column] = array.ctypes.data + place.buffer.offset
    program = Program(made.code, scratch.ctypes.data, emission.scratch)

    def run(_number: int, _kept: Any = (made, temps, scratch, x, y)) -> None:
        program.run()

    return run


def _check(name: str, scheme: Scheme, matrix: HashedMatrix, x: np.ndarray, y: np.ndarray) -> None:
    """A sample of outputs against float64."""
    rng = np.random.default_rng(1)
    rows = np.unique(rng.integers(0, len(x), 4))
    columns = np.unique(rng.integers(0, scheme.cols, CHECKED))
    bucket, sign = scheme.cells(np.arange(scheme.rows)[:, None], columns[None, :])
    exact = x[rows].astype(np.float64) @ (matrix.w[bucket] * sign)
    worst = float(np.abs(y[np.ix_(rows, columns)] - exact).max() / np.abs(exact).max())
    if not worst <= TOLERANCE:
        raise DisagreementError(f"{name}, {scheme}: differs by {worst:.3g} of the largest output")


def needed(emission: Emission, scheme: Scheme, rows: int, nonzero: float, limits: Limits) -> Demand:
    """The demand that binds an emission; of one that decides by the data, the least of its kernels'."""
    found = [busiest(demands(name, scheme, rows, nonzero), limits) for name in emission.choice.split(" or ")]
    return min(found, key=lambda need: _seconds(need, limits))


def demands(name: str, scheme: Scheme, rows: int, nonzero: float) -> list[Demand]:
    """What the kernel `name` needs at least.

    A transform: its additions (K log2(width), fewer where few outputs exist), and each weight read once. Inline
    hashing: a hash for each run of non-zero inputs, and its weights fetched or read and multiplied, for every row. A
    tile that rows share: its hashes and weights once, and every multiplication.
    """
    virtual = float(scheme.virtual_size)
    if name.startswith("dyadic") and isinstance(scheme, Dyadic):
        additions = transform_additions(scheme)
        return [Demand("fp32 adds", rows * additions), Demand(_level(scheme), 4.0 * scheme.buckets)]
    block = scheme.block if isinstance(scheme, Xxh32) else 1
    inline = name.startswith("xxh32_row")
    cells = virtual * rows * nonzero if inline else virtual
    products = virtual * rows * (nonzero if inline else 1.0)
    fetch = Demand("gathers", cells) if block < 16 else Demand("L1 reads", 4 * cells)
    return [Demand("hashes", cells / block), fetch, Demand("FMAs", products)]


def transform_additions(scheme: Dyadic) -> float:
    """For one row: the input's transform, then each group's, its last stages summed only for the outputs there are."""
    width, groups = scheme.width, scheme.groups
    places = -(-scheme.cols // groups)
    stages = int(log2(width))
    inverse = min(width * (stages - k) + places * (2**k - 1) for k in range(stages + 1))
    return scheme.rows + width * stages + groups * (width + inverse)


def _level(scheme: Scheme) -> str:
    return "L2 reads" if 4 * scheme.buckets <= 2**20 else "L3 reads"


UNITS = {
    "fp32 adds": "add",
    "FMAs": "fma",
    "gathers": "gather",
    "hashes": "hash",
    "L1 reads": "l1_read",
    "L2 reads": "l2_read",
    "L3 reads": "l3_read",
}


def busiest(needs: list[Demand], limits: Limits) -> Demand:
    """The demand that takes longest at the machine's peaks."""
    return max(needs, key=lambda need: _seconds(need, limits))


def _seconds(need: Demand, limits: Limits) -> float:
    return need.amount / float(getattr(limits, UNITS[need.unit]))


def verdict(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The planner's worst pick, and how many of its picks take over GOOD_ENOUGH times the fastest."""
    judged = [e for e in entries if e["picked_over_fastest"] is not None]
    worst = max(judged, key=lambda e: e["picked_over_fastest"], default=None)
    return {
        "cases": len(entries),
        "judged": len(judged),
        "with_a_choice": sum(len(e["kernels"]) > 1 for e in judged),
        "worst": worst and worst["picked_over_fastest"],
        "worst_case": worst and {k: worst[k] for k in ("shape", "scheme", "compression", "rows", "zeros", "picked")},
        "over": sum(e["picked_over_fastest"] > GOOD_ENOUGH for e in judged),
    }
