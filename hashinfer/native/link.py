"""The C compilers of this machine, which bring the linker and libm, and shared libraries made by them."""

import importlib.util
import os
import sys
from pathlib import Path

from hashinfer.errors import UnsupportedError


def named_linker() -> list[str] | None:
    """The command that HASHINFER_CC names."""
    import shlex

    named = os.environ.get("HASHINFER_CC")
    return shlex.split(named) if named else None


def zig() -> list[str] | None:
    """The package ziglang as a C compiler."""
    there = importlib.util.find_spec("ziglang") is not None
    return [sys.executable, "-m", "ziglang", "cc"] if there else None


def host_linkers() -> list[list[str]]:
    """Commands that link for this machine, the one to prefer first."""
    import shutil

    named, bundled = named_linker(), zig()
    if named:
        return [named]
    found = [[cc] for cc in ("cc", "gcc", "clang") if shutil.which(cc)]
    return [*found, bundled] if bundled else found


def shared_library(command: list[str], object_file: Path, library: Path) -> bytes:
    """The bytes of a shared library of one object. Raises UnsupportedError where the linker cannot do it."""
    import subprocess

    arguments = [*command, "-shared", "-s", "-o", str(library), str(object_file), "-lm"]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise UnsupportedError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise UnsupportedError(f"{command[0]} could not link: {said}")
    return library.read_bytes()
