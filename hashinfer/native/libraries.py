"""Compiled kernels as shared libraries in the user's cache, one a kernel: opened without any compiler.

A library's name ends in the SHA-256 of its bytes, and the cache folder's name in that of what it was made from
(hashinfer.kernels.cache). One that does not hash to its name, belongs to somebody else, or may be written by others, is
not opened.
"""

import ctypes
import hashlib
import logging
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hashinfer.errors import UnsupportedError
from hashinfer.files import atomic_write
from hashinfer.native.link import shared_library

log = logging.getLogger("hashinfer")

LARGEST = 2**24
DIGITS = 32
SUFFIX = ".so"


def symbol(kernel: str) -> str:
    """What a kernel's library exports."""
    return f"hashinfer_{kernel}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A kernel's code. address: of its entry. library: keeps it mapped."""

    address: int
    library: Any


def kept(folder: Path, kernel: str) -> list[Path]:
    """The library files of a kernel; more than one only where two processes wrote at once."""
    start = f"{kernel}-"
    with suppress(OSError):
        return sorted(folder / n for n in os.listdir(folder) if n.startswith(start) and n.endswith(SUFFIX))  # noqa: PTH208
    return []


def open_kept(folder: Path, kernel: str) -> Opened | None:
    """The kernel's code from the cache, or None. What cannot be trusted or opened is thrown away and said."""
    for path in kept(folder, kernel):
        wrong = _fault(path)
        if wrong is None:
            try:
                library = ctypes.CDLL(str(path))
                code = getattr(library, symbol(kernel))
            except (OSError, AttributeError) as error:
                wrong = str(error)
            else:
                return Opened(int(ctypes.cast(code, ctypes.c_void_p).value or 0), library)
        log.warning("the cached library %s is thrown away: %s", path, wrong)
        with suppress(OSError):
            path.unlink()
    return None


def _fault(path: Path) -> str | None:
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        return str(error.strerror)
    try:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST:
            return "it is no library that was written here"
        foreign = hasattr(os, "getuid") and about.st_uid != os.getuid()
        if foreign or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return "it belongs to somebody else or is writable by others"
        with os.fdopen(os.dup(handle), "rb") as file:
            found = hashlib.sha256(file.read()).hexdigest()[:DIGITS]
    finally:
        os.close(handle)
    return None if path.stem.endswith(f"-{found}") else "its content does not match its name"


def keep(folder: Path, kernel: str, object_code: bytes, linker: list[str]) -> Opened:
    """Link a kernel's object into the cache and open it. Raises UnsupportedError or OSError where that cannot be."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="hashinfer-") as work:
        source = Path(work) / "kernel.o"
        source.write_bytes(object_code)
        data = shared_library(linker, source, Path(work) / "kernel.so")
    path = folder / f"{kernel}-{hashlib.sha256(data).hexdigest()[:DIGITS]}{SUFFIX}"
    with atomic_write(path) as file:
        os.fchmod(file.fileno(), 0o700)
        file.write(data)
    opened = open_kept(folder, kernel)
    if opened is None:
        raise UnsupportedError(f"{path} was written and cannot be opened")
    return opened
