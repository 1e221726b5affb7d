"""What every hash scheme has: parameters with ranges, the map from a cell to (bucket, sign), and its ONNX body."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from hashinfer.errors import SchemeError

DOMAIN = "ai.hashinfer"
DOMAIN_VERSION = 1
BODY_MIN_OPSET = 18

MAX_SEED = 2**32 - 1
MAX_DIM = 2**31 - 1
MAX_BUCKETS = 2**30 - 1
CELLS_AT_ONCE = 2**18

Ints = npt.NDArray[np.int64]


def check_range(what: str, value: object, low: int, high: int) -> None:
    """Raise SchemeError unless `value` is an integer in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise SchemeError(f"{what} is {value!r}; expected an integer from {low} to {high}")


def check_budget(rows: int, cols: int, budget: int) -> None:
    """Raise SchemeError for a budget that holds no bucket."""
    if budget < 1:
        raise SchemeError(f"a budget of {budget} buckets for {rows} x {cols} virtual weights; expected at least 1")


@dataclass(frozen=True, slots=True)
class Scheme(ABC):
    """A virtual weight matrix W[rows, cols] over a weight vector of `buckets` numbers.

    rows: inputs, 1 <= rows < 2^31; cols: outputs, 1 <= cols < 2^31; buckets: K, 1 <= K < 2^30; 0 <= seed < 2^32.
    Raises SchemeError on anything else. Source: HashedNets, Chen et al., ICML 2015, eq. 3 and 7.
    """

    buckets: int
    rows: int
    cols: int
    seed: int

    name: ClassVar[str]
    op_type: ClassVar[str]
    parameter: ClassVar[str]
    """The attribute, beside seed, rows and cols, that this scheme adds to its op."""

    def __post_init__(self) -> None:
        check_range("buckets (the length of the weight vector)", self.buckets, 1, MAX_BUCKETS)
        check_range("rows", self.rows, 1, MAX_DIM)
        check_range("cols", self.cols, 1, MAX_DIM)
        check_range("seed", self.seed, 0, MAX_SEED)
        self._check_parameter()

    @abstractmethod
    def _check_parameter(self) -> None:
        """Raise SchemeError unless the scheme's own parameter fits the others."""

    @abstractmethod
    def cell(self, i: int, j: int) -> tuple[int, int]:
        """(bucket, sign) of W[i, j] in plain Python integers: the specification, one cell at a time."""

    @abstractmethod
    def cells(self, i: npt.ArrayLike, j: npt.ArrayLike) -> tuple[Ints, npt.NDArray[np.int8]]:
        """Buckets (int64) and signs (int8, -1 or 1) of W[i, j] for index arrays that broadcast together."""

    @classmethod
    @abstractmethod
    def fit(cls, rows: int, cols: int, budget: int, seed: int, parameter: int | None = None) -> Self:
        """The scheme of at most `budget` buckets for W[rows, cols]; its own parameter chosen where None."""

    @classmethod
    @abstractmethod
    def body_cells(cls) -> str:
        """The part of `body` that makes int64 [rows, cols] `bucket` and `negative`, 1 where the sign is -1, of `w`.

        It defines what NUMBERS in hashinfer.schemes.text does.
        """

    @classmethod
    def body(cls) -> str:
        """The op as an ONNX function in onnx's text form, with `OPSET` where the model's opset version goes."""
        return f"""\
<opset_import: ["" : OPSET], domain: "{DOMAIN}">
{cls.op_type} <seed: int, rows: int, cols: int, {cls.parameter}: int> (w) => (W) {{
{cls.body_cells()}
negative2 = Mul (negative, two)
sign = Sub (one, negative2)
sign_w = CastLike (sign, w)
magnitude = Gather (w, bucket)
W = Mul (magnitude, sign_w)
}}"""

    def attributes(self) -> dict[str, int]:
        """The op's attributes, all of them, as they are written to a file."""
        return {f.name: int(getattr(self, f.name)) for f in fields(self) if f.name != "buckets"}

    @property
    def virtual_size(self) -> int:
        """rows * cols: the number of virtual weights."""
        return self.rows * self.cols

    def table(self) -> tuple[Ints, npt.NDArray[np.int8]]:
        """`cells` for the whole matrix: two arrays [rows, cols]."""
        return self.cells(np.arange(self.rows)[:, None], np.arange(self.cols)[None, :])

    def blocks(self) -> Iterator[tuple[slice, Ints, npt.NDArray[np.int8]]]:
        """`table` by blocks of about 2^18 cells: the rows, their buckets and their signs."""
        step = max(1, CELLS_AT_ONCE // self.cols)
        for start in range(0, self.rows, step):
            end = min(start + step, self.rows)
            yield slice(start, end), *self.cells(np.arange(start, end)[:, None], np.arange(self.cols)[None, :])

    def expand(self, w: npt.NDArray[Any], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """W [rows, cols] in the dtype of the weight vector `w` [buckets], into `out` where given.

        Works by blocks of rows: beside W it takes about 2^18 * 40 bytes. Raises SchemeError if w has another shape.
        """
        if w.shape != (self.buckets,):
            raise SchemeError(f"the weight vector has shape {list(w.shape)}; expected [{self.buckets}]")
        dense = np.empty((self.rows, self.cols), w.dtype) if out is None else out
        for rows, bucket, sign in self.blocks():
            dense[rows] = w[bucket] * sign.astype(w.dtype)
        return dense
