"""Loads a shared library made by `hashinfer build`. Imports NumPy and ctypes, no compiler and no model format.

Loading a library runs its code: it is to be trusted as a program is.
"""

import ctypes
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hashinfer.errors import ModelError, OpError, UnsupportedError

Array = npt.NDArray[Any]

DESCRIBE = "hashinfer_describe"
"""The one symbol with a fixed name: it returns what is in the library, as JSON."""

FORMAT = 1
SUFFIXES = (".so", ".dylib", ".dll")
ALIGNMENT = 64
SCRATCHES_KEPT = 4
LARGEST_BATCH = 2**31 - 1

_REASONS = {1: "an argument was refused", 2: "an index is outside its table", 3: "a kernel gave up"}


class Library:
    """A compiled model: `about`, what it says of itself, and `run`. Safe to use from many threads at once.

    Raises ModelError where the file is no such library, UnsupportedError where it is of another version.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = os.path.abspath(os.fspath(path))  # noqa: PTH100
        if not os.path.exists(name):  # noqa: PTH110
            raise FileNotFoundError(2, "No such file or directory", name)
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            raise ModelError(f"{name} cannot be loaded as a shared library: {error}") from None
        try:
            describe = getattr(library, DESCRIBE)
        except AttributeError:
            raise ModelError(f"{name} was not made by hashinfer build: it has no {DESCRIBE}") from None
        describe.restype, describe.argtypes = ctypes.c_char_p, []
        self.path = name
        self.about: dict[str, Any] = json.loads(describe())
        if self.about.get("format") != FORMAT:
            raise UnsupportedError(f"{name} is of format {self.about.get('format')}; this version loads {FORMAT}")
        symbol = self.about["name"]
        self._run = getattr(library, f"{symbol}_run")
        pointers = ctypes.POINTER(ctypes.c_void_p)
        self._run.argtypes, self._run.restype = [pointers, pointers, ctypes.c_int32, ctypes.c_void_p], ctypes.c_int
        self.scratch_bytes = int(self.about["scratch"])
        self._ins = ctypes.c_void_p * max(1, len(self.about["inputs"]))
        self._outs = ctypes.c_void_p * max(1, len(self.about["outputs"]))
        self._scratches: list[Array] = []

    def run(self, inputs: Sequence[Array], outputs: Sequence[Array], batch: int) -> None:
        """Run on C-contiguous arrays of the library's types, `batch` rows (1 where it has no batch), into `outputs`.

        Raises OpError where an index is outside its table. Inputs and outputs must not overlap.
        """
        try:
            scratch = self._scratches.pop()
        except IndexError:
            scratch = _aligned(self.scratch_bytes)
        ins, outs = self._ins(*map(address, inputs)), self._outs(*map(address, outputs))
        code = self._run(ins, outs, batch, address(scratch))
        if len(self._scratches) < SCRATCHES_KEPT:
            self._scratches.append(scratch)
        if code:
            raise OpError(f"{self.path}: {_REASONS.get(code, 'an unknown error')} (code {code})")


def address(array: Array) -> int:
    """Where a C-contiguous array's bytes begin."""
    try:
        # A third of the time of the array interface, which serves read-only and empty arrays.
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        return int(array.__array_interface__["data"][0])


def _aligned(size: int) -> Array:
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + size]
