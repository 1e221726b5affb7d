"""What kernels import of `intrinsics`, by name: an intrinsic, and Numba with it, is made when it is first needed."""

from importlib import import_module
from typing import Any

from hashinfer.kernels.jit import Deferred

LANES = 16


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = Deferred(lambda: getattr(import_module("hashinfer.kernels.intrinsics"), name), name)
    globals()[name] = found
    return found
