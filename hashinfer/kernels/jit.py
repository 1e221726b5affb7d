"""All Numba plumbing: how device functions and entries are compiled, and where compiled code is kept.

Nothing compiles at import. An entry compiles, or comes from the cache, when its address is first asked for.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numba
from numba import cfunc, njit, types

from hashinfer.kernels.isa import ISA

log = logging.getLogger("hashinfer")

OPTIONS: dict[str, Any] = {"fastmath": {"reassoc", "nsz", "contract"}, "error_model": "numpy", "_nrt": False}
"""Sums may be reordered and products fused; NaN and Inf stay. Kernels own no memory: with Numba's runtime on, every
array that is handed to a function costs two calls that count references."""

ENTRY_SIGNATURE = types.void(types.CPointer(types.int64), types.int64, types.int64)

_lock = threading.RLock()


def _forget_lock() -> None:
    """In a forked child the lock may be held by a thread that is not there."""
    global _lock  # noqa: PLW0603
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels call, over arrays and scalars. Python can call it as well, as tests do."""
    return njit(function, nogil=True, **OPTIONS)


def inlined(function: Callable[..., Any]) -> Any:
    """A device function that is always inlined: for what runs once a vector, where passing arrays costs more."""
    return njit(function, nogil=True, forceinline=True, **OPTIONS)


class Kernel:
    """An entry `(args, tile, scratch) -> None` of the native driver.

    `fields` names the int64 arguments in their order. Floats travel as the bits of a float64, arrays as addresses.
    """

    def __init__(self, function: Callable[..., Any], fields: tuple[str, ...], signature: Any = ENTRY_SIGNATURE) -> None:
        self.name = function.__name__
        self.fields = fields
        self._function = function
        self._signature = signature
        self._compiled: Any = None

    @property
    def address(self) -> int:
        """The entry as a C function pointer, valid while the process lives. Compiles at first use."""
        if self._compiled is None:
            with _lock:
                if self._compiled is None:
                    self._compiled = _compile(self._function, self._signature)
        return int(self._compiled.address)

    def llvm_ir(self) -> str:
        """LLVM IR of the entry, `define i32` of it first, and of all it calls, as Numba's settings make it."""
        return str(cfunc(self._signature, **OPTIONS)(self._function)._library.get_llvm_str())

    def __repr__(self) -> str:
        return f"<kernel {self.name}>"


def entry(*fields: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator that makes a module-level function an entry; see Kernel."""
    return lambda function: Kernel(function, fields)


def compiled(signature: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorator for the driver's own functions, which are called from Python with int64 arguments."""

    def decorate(function: Callable[..., Any]) -> Kernel:
        return Kernel(function, tuple(inspect.signature(function).parameters), signature)

    return decorate


compile_listeners: list[Callable[[str], None]] = []
"""Called with a kernel's name before it is compiled because no cache had it."""


def _compile(function: Callable[..., Any], signature: Any) -> Any:
    with _cache_configured() as cached:
        build = cfunc(signature, cache=cached, **OPTIONS)
        if not (cached and _is_cached(function)):
            for listener in compile_listeners:
                listener(function.__name__)
        try:
            return build(function)
        except Exception as error:
            if not cached:
                raise
            # A cache entry may be truncated, corrupt or of another build: anything may come out of unpickling it.
            log.warning("the cache entry of %s is thrown away: %s", function.__name__, error)
            _drop_cached(function)
        try:
            return cfunc(signature, cache=True, **OPTIONS)(function)
        except Exception as error:
            log.warning("compiled code of %s could not be kept: %s", function.__name__, error)
            return cfunc(signature, **OPTIONS)(function)


def _drop_cached(function: Callable[..., Any]) -> None:
    """Remove the cache files of one function."""
    from numba.core.caching import FunctionCache  # noqa: PLC0415

    with suppress(AttributeError, RuntimeError, OSError):
        index = Path(FunctionCache(function)._cache_file._index_path)
        for path in index.parent.glob(f"{index.stem}*"):
            path.unlink()


def _is_cached(function: Callable[..., Any]) -> bool:
    """Whether Numba's cache has an index for `function`; it only decides what is said while compiling."""
    from numba.core.caching import FunctionCache  # noqa: PLC0415

    with suppress(AttributeError, RuntimeError, OSError):
        return Path(FunctionCache(function)._cache_file._index_path).exists()
    return False


@contextmanager
def _cache_configured() -> Iterator[bool]:
    """Points Numba's cache at our own folder for the length of one compilation; yields whether there is one."""
    folder = cache_folder()
    if folder is None:
        yield False
        return
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        with _exclusive(folder / "lock"):
            yield True
    finally:
        numba.config.CACHE_DIR = before


@contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Holds a lock file: concurrent writers have crashed Numba's cache (numba #4807)."""
    try:
        import fcntl  # noqa: PLC0415
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_folder() -> Path | None:
    """The folder of compiled code, made if need be: owned by this user, writable by nobody else. None if there is none.

    `HASHINFER_CACHE_DIR` names another place; an empty value turns the cache off.
    """
    chosen = os.environ.get("HASHINFER_CACHE_DIR")
    if chosen == "":
        return None
    base = Path(chosen) if chosen else _user_cache()
    if base is None:
        return None
    folder = base / f"kernels-{_sources_digest()}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
        if hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
            log.warning("%s belongs to somebody else or is writable by others: compiled code is not kept", folder)
            return None
        if not os.access(folder, os.W_OK | os.X_OK):
            return None
        (folder / "lock").touch(mode=0o600)
    except OSError as error:
        log.info("no cache of compiled code: %s", error)
        return None
    return folder


def _user_cache() -> Path | None:
    home: Path | None = None
    with suppress(RuntimeError, KeyError):
        home = Path.home()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA")
        return Path(local) / "hashinfer" if local else None
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "hashinfer" if home else None
    xdg = os.environ.get("XDG_CACHE_HOME")
    if xdg and Path(xdg).is_absolute():
        return Path(xdg) / "hashinfer"
    return home / ".cache" / "hashinfer" if home and home != Path("/nonexistent") else None


def _sources_digest() -> str:
    """Names a cache by every kernel source and compiler setting: Numba stamps only the file of the outer function."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    settings = (
        numba.__version__,
        sys.version,
        ISA,
        sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_")),
    )
    digest.update(repr(settings).encode())
    return digest.hexdigest()[:20]
