"""Shared libraries from objects, by whichever C compiler is there: it brings the linker and libm."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from hashinfer.errors import InputError, UnsupportedError
from hashinfer.native.emit.targets import Target


def linkers(target: Target) -> list[list[str]]:
    """Commands that link for a target, the one to prefer first; HASHINFER_CC names another."""
    named = os.environ.get("HASHINFER_CC")
    if named:
        return [shlex.split(named)]
    parts = target.triple.split("-")
    arch, system = parts[0], "-".join(parts[2:] if len(parts) > 3 else parts[1:])
    native = not target.triple or (target.triple.startswith("x86_64") and _machine() in ("x86_64", "amd64"))
    found = [[cc] for cc in ("cc", "gcc", "clang")] if native else []
    if not native:
        cross = {"armv7": "arm"}.get(arch, arch)
        found = [[f"{cross}-{system}-gcc"], ["clang", f"--target={target.triple}", "-fuse-ld=lld"]]
    out = [command for command in found if shutil.which(command[0])]
    if importlib.util.find_spec("ziglang") is not None:
        zig = [sys.executable, "-m", "ziglang", "cc"]
        out.append(zig if native else [*zig, "-target", f"{ {'armv7': 'arm'}.get(arch, arch) }-{system}"])
    return out


def _machine() -> str:
    import platform  # noqa: PLC0415

    return platform.machine().lower()


def linker(target: Target) -> list[str]:
    """The command to link with. Raises UnsupportedError where none is here, InputError where a target has no system."""
    if target.small:
        raise InputError(f"{target.name} has no shared libraries; build an object file (--format o)")
    commands = linkers(target)
    if not commands:
        raise UnsupportedError(
            f"no linker for {target.name} is here: install a C compiler for it, or `pip install ziglang`, "
            "or name one in HASHINFER_CC; --format o needs none"
        )
    return commands[0]


def link_shared(object_file: Path, target: Target, folder: Path) -> bytes:
    """The shared library's bytes. Raises what `linker` raises, and InputError where linking fails."""
    library, chosen = folder / "model.so", linker(target)
    command = [*chosen, "-shared", "-o", str(library), str(object_file), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise InputError(f"{chosen[0]} cannot be run: {error.strerror}") from None
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise InputError(f"{chosen[0]} could not link: {said}")
    return library.read_bytes()
