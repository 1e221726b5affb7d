"""A hashed weight matrix at rest: the scheme, the weight vector in its stored form, the spectrum once it is needed."""

import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hashinfer.errors import SchemeError
from hashinfer.kernels import dyadic
from hashinfer.kernels.isa import INTEGER, ISA, MOST_LANES
from hashinfer.kernels.jit import Kernel
from hashinfer.kernels.pool import Program
from hashinfer.ops.base import Array
from hashinfer.ops.emission import Arguments, KernelCall, aligned_empty, assemble
from hashinfer.schemes import Dyadic, Scheme


class HashedMatrix:
    """W = scale * expand(w), with w [K] in float32, float16 (held as its uint16 bits) or int8.

    Raises SchemeError where w has another length or dtype.
    """

    def __init__(self, scheme: Scheme, w: Array, scale: float = 1.0) -> None:
        if w.shape != (scheme.buckets,):
            raise SchemeError(f"the weight vector has shape {list(w.shape)}; expected [{scheme.buckets}]")
        if w.dtype not in (np.float32, np.float16, np.int8):
            raise SchemeError(f"the weight vector is {w.dtype}; expected float32, float16 or int8")
        self.scheme = scheme
        self.stored_dtype = w.dtype
        self.scale = scale
        self._lock = threading.Lock()
        self._spectrum: Array | None = None
        self._whole: Array | None = None
        self.materialise = False
        """Whether W may be held as it is: set before any plan is made, by what spends a memory budget."""
        self.w: Array = np.ascontiguousarray(w.view(np.uint16) if w.dtype == np.float16 else w)
        values = w if w.dtype == np.int8 else w.astype(np.float32, copy=False)
        self.finite = bool(np.isfinite(values).all()) and bool(np.isfinite(scale))
        largest = float(np.abs(values.astype(np.float32, copy=False)).max()) if self.finite else np.inf
        self.in_range = self.finite and (largest == 0 or float(dyadic.SMALLEST) <= largest <= float(dyadic.LARGEST))
        """Every weight finite and the largest stored number inside the transform's safe range."""

    @property
    def suffix(self) -> str:
        """Which variant of a kernel reads this weight vector."""
        return {np.dtype(np.uint16): "f16", np.dtype(np.int8): "i8"}.get(self.w.dtype, "f32")

    def kernel(self, module: ModuleType, name: str) -> Kernel:
        """The variant of a kernel that reads this weight vector."""
        found: Kernel = getattr(module, f"{name}_{self.suffix}")
        return found

    def args(self) -> Arguments:
        """What the scheme's kernels are told of it: half is ceil(log2(width) / 2) of a dyadic scheme, 0 of another."""
        return {
            "w": self.w,
            "buckets": self.scheme.buckets,
            "seed": int(np.uint32(self.scheme.seed).view(np.int32)),
            self.scheme.parameter: self.parameter,
            "half": self.scheme.width.bit_length() // 2 if isinstance(self.scheme, Dyadic) else 0,
        }

    @property
    def parameter(self) -> int:
        """block or width."""
        return int(getattr(self.scheme, self.scheme.parameter))

    def take_spectrum(self) -> Array:
        """H w_g / width of all groups, float32, unscaled, as hashinfer.kernels.dyadic lays it out; taken once.

        Raises SchemeError where the scheme has none.
        """
        with self._lock:
            if self._spectrum is None:
                out = aligned_empty(4 * spectrum_size(self.dyadic)).view(np.float32)
                args = self.args() | {"chunks": self.chunks, "chunk_count": len(self.chunks)}
                args |= {"spectrum": out, "floats": out.size}
                scratch = aligned_empty(4 * MOST_LANES * self.dyadic.width)
                program = assemble([KernelCall(self.kernel(dyadic, "dyadic_spectrum"), 1, args, scratch.nbytes, 0.0)])
                Program(program.code, scratch.ctypes.data, scratch.nbytes).run()
                self._spectrum = out
            return self._spectrum

    def take_whole(self, expand: Callable[[Array], None]) -> Array:
        """W [rows, cols], float32, written by `expand` once and held from then on: only where it is materialised."""
        with self._lock:
            if self._whole is None:
                out = np.empty((self.scheme.rows, self.scheme.cols), np.float32)
                expand(out)
                self._whole = out
            return self._whole

    @property
    def dyadic(self) -> Dyadic:
        """The scheme. Raises SchemeError where it is another one."""
        if not isinstance(self.scheme, Dyadic):
            raise SchemeError(f"the {self.scheme.name} scheme has no spectrum")
        return self.scheme

    @cached_property
    def chunks(self) -> NDArray[np.int64]:
        """How the spectrum is cut into chunks of groups, as hashinfer.kernels.dyadic.chunk_table has it."""
        return dyadic.chunk_table(self.dyadic.groups, self.dyadic.width, self.dyadic.cols)

    @property
    def place_count(self) -> int:
        """ceil(cols / groups)."""
        return -(-self.dyadic.cols // self.dyadic.groups)

    @cached_property
    def places(self) -> NDArray[np.int32]:
        """int32 [T]: perm(t) for t < T = place_count."""
        out = np.empty(self.place_count, np.int32)
        for first, numbers in _blocks(out.size):
            out[first : first + numbers.size] = self.dyadic.permute(numbers)
        return out

    @cached_property
    def row_signs(self) -> NDArray[np.uint16]:
        """Bit i % 16 of word i // 16 is set where s(i) is -1."""
        return _sign_words(self.dyadic.row_negative, self.scheme.rows)

    @cached_property
    def col_signs(self) -> NDArray[np.uint16]:
        """Bit j % 16 of word j // 16 is set where r(j) is -1."""
        return _sign_words(self.dyadic.col_negative, self.scheme.cols)

    @cached_property
    def norms(self) -> NDArray[np.int32]:
        """int32 [groups]: ceil(log2(||w_g||_2)) of an int8 weight vector, 0 where the norm is below 1."""
        out = np.empty(self.dyadic.groups, np.int32)
        for at, w in self._some_groups():
            # Exact: a sum of squares of int8 has far fewer than 53 bits.
            out[at] = np.ceil(np.log2(np.maximum(np.square(w, dtype=np.int64).sum(1), 1)) / 2)
        return out

    def _some_groups(self) -> Iterator[tuple[slice, Array]]:
        """w_g of all groups, a few at a time, which bounds what is computed of them: which groups, [groups, width]."""
        groups = self.w.reshape(-1, self.dyadic.width)
        step = max(1, 2**16 // self.dyadic.width)
        for first in range(0, len(groups), step):
            at = slice(first, first + step)
            yield at, groups[at]

    @cached_property
    def survives(self) -> bool:
        """Whether a kernel may hold the spectrum of a dyadic scheme in place of w, from which it comes back rounded.

        Not of a narrower dtype, which takes less room, nor where a weight is so far below the others of its group that
        it could come back with another sign.
        """
        if not isinstance(self.scheme, Dyadic) or self.w.dtype != np.float32:
            return False
        least = 20 * np.finfo(np.float32).eps
        return all(
            bool((np.abs(w) > least * np.sqrt(np.square(w, dtype=np.float64).mean(1, keepdims=True))).all())
            for _, w in self._some_groups()
        )

    @cached_property
    def bare_spectrum(self) -> NDArray[np.float32]:
        """H w_g of all groups, unscaled, float32 [groups, width], in their own order: what stands in for w."""
        width = self.dyadic.width
        out = np.empty((self.dyadic.groups, width), np.float32)
        for at, w in self._some_groups():
            some, step = w.astype(np.float64), 1
            while step < width:
                pairs = some.reshape(-1, 2, step)
                some = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], 1)
                step *= 2
            out[at] = some.reshape(-1, width)
        return out

    @property
    def spectrum_bytes(self) -> int:
        """Bytes of the spectrum, taken yet or not; 0 for a scheme without one."""
        return 4 * spectrum_size(self.scheme) if isinstance(self.scheme, Dyadic) else 0

    @property
    def table_bytes(self) -> int:
        """Bytes of a dyadic scheme's tables, taken yet or not: places, signs and norms; 0 for another scheme."""
        if not isinstance(self.scheme, Dyadic):
            return 0
        signs = -(-self.scheme.rows // 16) + -(-self.scheme.cols // 16)
        return 8 * self.place_count + 2 * signs + 4 * self.scheme.groups * (ISA == INTEGER)

    @property
    def resident_bytes(self) -> int:
        """Bytes that the weights take in memory now."""
        held = (self._spectrum, self._whole, vars(self).get("bare_spectrum"))
        return self.w.nbytes + sum(array.nbytes for array in held if array is not None)

    @property
    def materialised_bytes(self) -> int:
        """Bytes of W where it is held as it is, taken yet or not; else 0."""
        return 4 * self.scheme.virtual_size if self.materialise else 0


def spectrum_size(scheme: Dyadic) -> int:
    """Floats in a spectrum: K, and the zero lanes behind the last chunk."""
    _, lanes, start, _ = (int(v) for v in dyadic.chunk_table(scheme.groups, scheme.width, scheme.cols)[-1])
    return start + scheme.width * lanes


def _blocks(count: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """0 ... count - 1 in runs of 2^16, which bound what hashing them takes: each run's first number, and the run."""
    for first in range(0, count, 2**16):
        yield first, np.arange(first, min(count, first + 2**16), dtype=np.uint64)


def _sign_words(negative: Callable[[NDArray[np.uint64]], NDArray[Any]], count: int) -> NDArray[np.uint16]:
    words = np.zeros(-(-count // 16), "<u2")
    for first, numbers in _blocks(count):
        bits = np.packbits(np.asarray(negative(numbers)).astype(np.uint8), bitorder="little")
        words.view(np.uint8)[first // 8 : first // 8 + bits.size] = bits
    return words.astype(np.uint16, copy=False)
