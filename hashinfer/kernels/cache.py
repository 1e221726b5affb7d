"""The folder of compiled code: the user's alone, one set in it for each state of sources, versions, CPU and settings.

`HASHINFER_CACHE_DIR` names another place; an empty value turns the cache off.
"""

import functools
import hashlib
import importlib.util
import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hashinfer.kernels.isa import GATHERS, ISA, cpu_identity

log = logging.getLogger("hashinfer")

PREFIX = "kernels-"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a lock file: concurrent writers have crashed Numba's cache (numba #4807)."""
    try:
        import fcntl  # noqa: PLC0415
    except ImportError:
        yield
        return
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cache_folder() -> Path | None:
    """This process's set, made if need be: owned by this user, writable by nobody else. None if there is none."""
    base = base_folder()
    if base is None:
        return None
    folder = base / current_set()
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


@dataclass(frozen=True, slots=True)
class Kept:
    """A set: of which bytes and kernels, and whether this process would use it."""

    folder: Path
    current: bool
    kernels: tuple[str, ...]
    size: int


def kept_sets() -> list[Kept]:
    """Every set there is, this process's first."""
    base = base_folder()
    found = []
    with suppress(OSError):
        for folder in sorted(base.glob(f"{PREFIX}*")) if base is not None else ():
            files = [f for f in folder.rglob("*") if f.is_file() and not f.is_symlink()]
            names = {f.name.rpartition("-")[0] for f in files if f.suffix == ".so"}
            names |= {f.name.split(".")[1].partition("-")[0] for f in files if f.suffix == ".nbi"}
            size = sum(f.stat().st_size for f in files)
            found.append(Kept(folder, folder.name == current_set(), tuple(sorted(names)), size))
    return sorted(found, key=lambda k: not k.current)


def clear() -> list[Kept]:
    """Remove every set; what was there. Processes that run go on with what they have opened. Raises OSError."""
    import shutil  # noqa: PLC0415

    found = kept_sets()
    for each in found:
        shutil.rmtree(each.folder)
    return found


def base_folder() -> Path | None:
    """Where sets are kept; None where the cache is off or the user has no place for it."""
    chosen = os.environ.get("HASHINFER_CACHE_DIR")
    if chosen == "":
        return None
    return Path(chosen) if chosen else _user_cache()


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


def _version(package: str) -> str:
    """An installed package's version."""
    import importlib.metadata  # noqa: PLC0415

    return importlib.metadata.version(package)


@functools.cache
def _sources() -> bytes:
    """Every kernel source, and the versions of the compiler: Numba stamps only the file of the outer function."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for package in ("numba", "llvmlite"):
        # What importlib.metadata knows takes it several times as long to find.
        found = importlib.util.find_spec(package)
        file = None if found is None or found.origin is None else Path(found.origin).with_name("_version.py")
        digest.update(file.read_bytes() if file is not None and file.exists() else _version(package).encode())
    return digest.digest()


def current_set() -> str:
    """The set that this process uses, named by sources, versions, CPU and compiler settings."""
    named = sorted((k, v) for k, v in os.environ.items() if k.startswith("NUMBA_"))
    digest = hashlib.sha256(_sources() + repr((sys.version, ISA, GATHERS, cpu_identity(), named)).encode())
    return PREFIX + digest.hexdigest()[:20]
