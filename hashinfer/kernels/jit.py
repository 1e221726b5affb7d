"""Kernels as names and addresses. No compiler is imported here.

Nothing compiles at import. An entry is opened from the cache, or compiled, when its address is first asked for. Numba
is imported when the first one has to be compiled, or Python calls a device function.
"""

import functools
import inspect
import os
import pkgutil
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from hashinfer.kernels.cache import cache_folder
from hashinfer.native import libraries

_lock = threading.RLock()


def _forget_lock() -> None:
    """In a forked child the lock may be held by a thread that is not there."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def _compiler() -> Any:
    return import_module("hashinfer.kernels.compiler")


class Deferred:
    """What kernels name and only a compiler needs: made when such a kernel compiles, or Python calls it."""

    def __init__(self, make: Callable[[], Any], name: str) -> None:
        self.__name__ = name
        self._make = make
        self._made: Any = None

    @property
    def made(self) -> Any:
        """The dispatcher, intrinsic or external function itself."""
        if self._made is None:
            # Without the lock, which may not be waited for under Numba's own: two made at once serve alike.
            self._made = self._make()
        return self._made

    @property
    def _numba_type_(self) -> Any:
        """Numba's protocol for the type of a global."""
        return _compiler().type_of(self.made)

    def __call__(self, *args: Any) -> Any:
        return self.made(*args)

    def __repr__(self) -> str:
        return f"<deferred {self.__name__}>"


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels call, over arrays and scalars. Python can call it as well, as tests do."""
    return functools.update_wrapper(Deferred(lambda: _compiler().device(function), function.__name__), function)


def inlined(function: Callable[..., Any]) -> Any:
    """A device function that is always inlined: for what runs once a vector, where passing arrays costs more."""
    return functools.update_wrapper(Deferred(lambda: _compiler().inlined(function), function.__name__), function)


def external(name: str, returns: str, *takes: str) -> Any:
    """A function of the C library, its types by Numba's names."""
    return Deferred(lambda: _compiler().external(name, returns, takes), name)


class Kernel:
    """An entry of the native driver, `(args, tile, scratch) -> None`, or one of the driver's own functions.

    `fields` names the arguments in their order, each an intp: see hashinfer.kernels.vectors. Floats travel as the bits
    of a float32, arrays as addresses.
    `plain`: it takes its arguments as they are and is called from Python.
    """

    def __init__(self, function: Callable[..., Any], fields: tuple[str, ...], *, plain: bool = False) -> None:
        self.name = function.__name__
        self.fields = fields
        self.plain = plain
        self.function = function
        self._code: Any = None

    @property
    def address(self) -> int:
        """The entry as a C function pointer, valid while the process lives. Compiles at first use."""
        if self._code is None:
            with _lock:
                if self._code is None:
                    self._code = _opened(self) or _compiler().compile_kernel(self)
        return int(self._code.address)

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"


def entry(*fields: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator that makes a module-level function an entry; see Kernel."""
    return lambda function: Kernel(function, fields)


def compiled(function: Callable[..., Any]) -> Kernel:
    """Decorator for the driver's own functions, which are called from Python with int64 arguments."""
    return Kernel(function, tuple(inspect.signature(function).parameters), plain=True)


def folder_of(kernel: Kernel) -> Path | None:
    """The cache folder, for kernels of this package: it is named by their sources alone."""
    return cache_folder() if kernel.function.__module__.startswith(__package__) else None


def _opened(kernel: Kernel) -> libraries.Opened | None:
    folder = folder_of(kernel)
    return None if folder is None else libraries.open_kept(folder, kernel.name)


at_first_compile: list[Callable[[], None]] = []
"""What must be told to Numba before any kernel compiles."""

compile_listeners: list[Callable[[str], None]] = []
"""Called with a kernel's name before it is compiled because no cache had it."""


def every_kernel() -> list[Kernel]:
    """The entries of all modules of this package, by name."""
    found: dict[str, Kernel] = {}
    for module in pkgutil.iter_modules([os.path.dirname(__file__)]):  # noqa: PTH120
        if module.name not in ("compiler", "intrinsics"):
            there = vars(import_module(f"hashinfer.kernels.{module.name}")).values()
            found.update((k.name, k) for k in there if isinstance(k, Kernel))
    return [found[name] for name in sorted(found)]
