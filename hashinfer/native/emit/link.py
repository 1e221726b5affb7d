"""Which command links for a target."""

import shutil
from pathlib import Path

from hashinfer.errors import InputError, UnsupportedError
from hashinfer.kernels.isa import X86
from hashinfer.native.emit.targets import Target
from hashinfer.native.link import host_linkers, named_linker, shared_library, zig


def linkers(target: Target) -> list[list[str]]:
    """Commands that link for a target, the one to prefer first; HASHINFER_CC names another."""
    parts = target.triple.split("-")
    arch, system = parts[0], "-".join(parts[2:] if len(parts) > 3 else parts[1:])
    named = named_linker()
    if named or not target.triple or (arch == "x86_64" and X86):
        return host_linkers()
    cross = {"armv7": "arm"}.get(arch, arch)
    found = [[f"{cross}-{system}-gcc"], ["clang", f"--target={target.triple}", "-fuse-ld=lld"]]
    out, bundled = [command for command in found if shutil.which(command[0])], zig()
    return [*out, [*bundled, "-target", f"{cross}-{system}"]] if bundled else out


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
    """The shared library's bytes. Raises what `linker` raises, and UnsupportedError where linking fails."""
    return shared_library(linker(target), object_file, folder / "model.so")
