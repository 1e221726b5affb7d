"""A hashed weight matrix at rest: the scheme, the weight vector in its stored form, the spectrum once it is needed."""

from __future__ import annotations

import threading

import numpy as np

from hashinfer.errors import SchemeError
from hashinfer.kernels import dyadic
from hashinfer.kernels.jit import Kernel
from hashinfer.kernels.pool import Program
from hashinfer.ops.base import Array
from hashinfer.ops.emission import Argument, KernelCall, assemble
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

    @property
    def half(self) -> int:
        """ceil(log2(width) / 2) of a dyadic scheme, 0 for another."""
        return self.scheme.width.bit_length() // 2 if isinstance(self.scheme, Dyadic) else 0

    @property
    def parameter(self) -> int:
        """block or width."""
        return int(getattr(self.scheme, self.scheme.parameter))

    def dense(self) -> Array:
        """W [rows, cols], float32. For tests, `verify` and `expand`; the engine never calls it."""
        w = self.w.view(np.float16) if self.w.dtype == np.uint16 else self.w
        values: Array = self.scheme.expand(w.astype(np.float32)) * np.float32(self.scale)
        return values

    def take_spectrum(self) -> Array:
        """H w_g / width of all groups, float32, unscaled, as hashinfer.kernels.dyadic lays it out; taken once."""
        if not isinstance(self.scheme, Dyadic):
            raise SchemeError(f"the {self.scheme.name} scheme has no spectrum")
        with self._lock:
            if self._spectrum is None:
                self._spectrum = self._transformed(self.scheme)
            return self._spectrum

    def _transformed(self, scheme: Dyadic) -> Array:
        out = np.empty(spectrum_size(scheme), np.float32)
        args: dict[str, Argument] = {
            "w": self.w,
            "buckets": scheme.buckets,
            "width": scheme.width,
            "spectrum": out,
            "floats": out.size,
        }
        kernel: Kernel = getattr(dyadic, f"dyadic_spectrum_{self.suffix}")
        program = assemble([KernelCall(kernel, 1, args, 0, 0.0)])
        Program(program.code, 0, 0).run()
        return out

    @property
    def spectrum_bytes(self) -> int:
        """Bytes of the spectrum, taken yet or not; 0 for a scheme without one."""
        return 4 * spectrum_size(self.scheme) if isinstance(self.scheme, Dyadic) else 0

    @property
    def resident_bytes(self) -> int:
        """Bytes that the weights take in memory now."""
        return self.w.nbytes + (0 if self._spectrum is None else self._spectrum.nbytes)


def spectrum_size(scheme: Dyadic) -> int:
    """Floats in a spectrum: K, and the zero lanes behind the last chunk."""
    whole, rest = divmod(scheme.groups, dyadic.GROUP_LANES)
    lanes = whole * dyadic.GROUP_LANES + (1 << (rest - 1).bit_length() if rest else 0)
    return lanes * scheme.width
