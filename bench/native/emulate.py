"""Builds a model for a target and runs it there: on this CPU, under QEMU, or in Node."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hashinfer.kernels import isa
from hashinfer.native.emit.build import Built, build
from hashinfer.native.emit.targets import resolve

HERE = Path(__file__).parent
FLAGS = ("-O2", "-std=c11")


@dataclass(frozen=True)
class Place:
    """Where a target's programs run. compiler: links them; runs: what starts one; counts: whether QEMU runs it.

    cpu: instruction sets that this CPU must have.
    """

    compiler: tuple[str, ...]
    runs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    cpu: tuple[str, ...] = ()
    wasm: bool = False

    @property
    def counts(self) -> bool:
        """Whether an emulator runs it that can count instructions."""
        return bool(self.runs) and self.runs[0].startswith("qemu")

    def missing(self) -> str:
        """What is not here to run it; empty where everything is."""
        if self.cpu and not (isa.X86 and set(self.cpu) <= isa.available()):
            return f"this CPU has no {', '.join(self.cpu)}"
        if self.wasm and importlib.util.find_spec("ziglang") is None:
            return "the package ziglang is not installed"
        tools = [t for t in (self.compiler[0], *self.runs[:1]) if not shutil.which(t)]
        return f"{', '.join(tools)} not installed" if tools else ""


_CC = (next((cc for cc in ("cc", "gcc", "clang") if shutil.which(cc)), "cc"),)
_BOARD = ("-monitor", "none", "-serial", "none", "-display", "none", "-semihosting-config", "enable=on,target=native")


def _user(arch: str, system: str = "linux-gnu", cpu: str = "max") -> Place:
    return Place((f"{arch}-{system}-gcc",), (f"qemu-{arch}", "-cpu", cpu), flags=("-static",))


def _board(machine: str, cpu: str, fpu: str = "") -> Place:
    floats = ("-mfloat-abi=hard", f"-mfpu={fpu}") if fpu else ("-mfloat-abi=soft",)
    flags = (f"-mcpu={cpu}", "-mthumb", *floats, "--specs=rdimon.specs")
    return Place(
        ("arm-none-eabi-gcc",),
        ("qemu-system-arm", "-M", machine, *_BOARD, "-kernel"),
        ("cortex-m.c",),
        (*flags, "-T", str(HERE / "cortex-m.ld")),
    )


PLACES: dict[str, Place] = {
    "x86-64-v2": Place(_CC, cpu=("sse4_2", "ssse3", "popcnt")),
    "x86-64-v3": Place(_CC, cpu=("avx2", "fma", "bmi2")),
    "x86-64-v4": Place(_CC, cpu=("avx512f", "avx512bw", "avx512dq", "avx512vl")),
    "aarch64": _user("aarch64"),
    "raspberry-pi-zero2": _user("aarch64", cpu="cortex-a53"),
    "raspberry-pi-4": _user("aarch64", cpu="cortex-a72"),
    "raspberry-pi-5": _user("aarch64", cpu="max"),
    "armv7": _user("arm", "linux-gnueabihf", "cortex-a7"),
    "riscv64": _user("riscv64", cpu="rv64"),
    "cortex-m3": _board("mps2-an385", "cortex-m3"),
    "cortex-m4": _board("mps2-an386", "cortex-m4", "fpv4-sp-d16"),
    "cortex-m7": _board("mps2-an500", "cortex-m7", "fpv5-d16"),
    "wasm32": Place(
        (sys.executable, "-m", "ziglang", "cc"), ("node", "--no-warnings", str(HERE / "wasm.mjs")), wasm=True
    ),
}


@dataclass(frozen=True)
class Program:
    """A model's program for one target, in a folder of its own."""

    folder: Path
    place: Place
    built: Built

    def run(self, feeds: Sequence[Mapping[str, np.ndarray[Any, Any]]], *, count: bool = False) -> tuple[list[Any], int]:
        """(the outputs of each row, as arrays; instructions executed in all, where they are counted)."""
        inputs, outputs = self.built.about["inputs"], self.built.about["outputs"]
        (self.folder / "in.bin").write_bytes(
            b"".join(np.ascontiguousarray(feed[port["name"]]).tobytes() for feed in feeds for port in inputs)
        )
        command = [*self.place.runs]
        if count:
            command[1:1] = ["-plugin", str(_counter())]
        subprocess.run([*command, str(self.folder / "program")], cwd=self.folder, check=True, timeout=300)
        raw, at, found = (self.folder / "out.bin").read_bytes(), 0, []
        for _ in feeds:
            row = []
            for port in outputs:
                size = bytes_of(port)
                row.append(np.frombuffer(raw[at : at + size], port["dtype"]))
                at += size
            found.append(row)
        if at != len(raw):
            raise ValueError(f"the program wrote {len(raw)} bytes; expected {at}")
        counted = int((self.folder / "instructions.txt").read_text()) if count else 0
        return found, counted


def bytes_of(port: Mapping[str, Any]) -> int:
    """Bytes of one row of an input or output."""
    shape = [port["rows"], *port["shape"][1:]] if port["grows"] else port["shape"]
    return int(np.dtype(port["dtype"]).itemsize * np.prod(shape, dtype=np.int64))


def program(model: str | os.PathLike[str], target: str, folder: Path) -> Program:
    """Build a model for one of PLACES, with a main that runs rows of in.bin. folder: an empty one, made if need be."""
    place, folder = PLACES[target], folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    built = build(model, resolve(target), "o", "model")
    (folder / "model.o").write_bytes(built.data)
    (folder / "model.h").write_text(built.header)
    lines = []
    for kind, total in (("INPUT", "IN_ALL"), ("OUTPUT", "OUT_ALL")):
        sizes = [bytes_of(port) for port in built.about[f"{kind.lower()}s"]]
        lines += [f"#define {kind}_BYTES {{{', '.join(map(str, sizes))}}}", f"#define {total} {sum(sizes)}"]
    (folder / "ports.h").write_text("\n".join(lines) + "\n")
    sources = [str(HERE / name) for name in ("rows.c", *place.sources)]
    more = ["-target", "wasm32-wasi"] if place.wasm else []
    command = [*place.compiler, *more, *FLAGS, *place.flags, f"-I{folder}", "-o", str(folder / "program")]
    subprocess.run([*command, *sources, str(folder / "model.o"), "-lm"], check=True, timeout=600)
    return Program(folder, place, built)


@cache
def _counter() -> Path:
    """The instruction-counting plugin, compiled once a process."""
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="hashinfer-count-"))
    library = folder / "count.so"
    subprocess.run([*_CC, "-shared", "-fPIC", "-O2", "-o", str(library), str(HERE / "count.c")], check=True)
    return library
