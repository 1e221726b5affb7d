"""What a compiled digit classifier takes on each target: bytes of code and constants, scratch, instructions."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np

from bench.native.emulate import PLACES, Program, program
from bench.tables import size, table

MODELS = Path(__file__).resolve().parent.parent.parent / "models"
DENSE, INT8 = "dense", "mnist-dyadic-64x-int8"
NETS = ("mnist-dyadic-64x", "mnist-xxh32-64x", DENSE)
BOARDS = ("cortex-m3", "cortex-m4", "cortex-m7")
"""Where the int8 net is shown as well."""
SHOWN = ("x86-64-v3", "raspberry-pi-zero2", "raspberry-pi-4", "armv7", "riscv64", *BOARDS, "wasm32")
FEW, MANY = 2, 10


def measure(folder: Path) -> list[dict[str, Any]]:
    """A row for each target and net. folder: for what is built."""
    digits = np.load(MODELS / "mnist-test-1k.npy")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "hashinfer",
            "expand",
            str(MODELS / f"{NETS[0]}.hnet"),
            "-o",
            str(folder / "dense.onnx"),
        ],
        check=True,
    )
    rows = []
    for target in SHOWN:
        missing = PLACES[target].missing()
        if missing:
            print(f"left out: {target}: {missing}", file=sys.stderr)
            continue
        for name in (*NETS, INT8) if target in BOARDS else NETS:
            path = folder / "dense.onnx" if name == DENSE else MODELS / f"{name}.hnet"
            made = program(path, target, folder / f"{target}-{name}")
            code, constants = sections(made.built.data)
            counts = [instructions(made, digits[:n]) for n in (FEW, MANY)]
            row = {
                "target": target,
                "net": name,
                "code": code,
                "constants": constants,
                "scratch": made.built.about["scratch"],
                "instructions": None if None in counts else round((counts[1] - counts[0]) / (MANY - FEW)),
            }
            print(f"{target}, {name}: {row}", file=sys.stderr)
            rows.append(row)
    return rows


def sections(data: bytes) -> tuple[int, int]:
    """(bytes of code, bytes of constants) in an object file, without the model's description of itself."""
    code = constants = 0
    if data[:4] == b"\0asm":
        return wasm_sections(data)
    for section in llvm.ObjectFileRef.from_data(data).sections():
        name = (section.name() or b"").decode()
        if section.is_text():
            code += section.size()
        elif name.startswith((".rodata", ".data", ".srodata", ".sdata")) and "_describe" not in name:
            constants += section.size()
    return code, constants


def wasm_sections(data: bytes) -> tuple[int, int]:
    """The same of a WebAssembly object: its sections 10 and 11 (WebAssembly core specification, binary format)."""
    sizes, at = {10: 0, 11: 0}, 8
    while at < len(data):
        kind, length, shift = data[at], 0, 0
        at += 1
        while True:
            byte = data[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        sizes[kind] = sizes.get(kind, 0) + length
        at += length
    return sizes[10], sizes[11]


def instructions(made: Program, digits: np.ndarray[Any, Any]) -> Any:
    """Executed by the whole program for these digits; None where nothing here counts them."""
    feeds = [{"image": digit} for digit in digits]
    if made.place.counts:
        return made.run(feeds, count=True)[1]
    if made.place.runs or shutil.which("valgrind") is None:
        return None
    made.run(feeds)
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", str(made.folder / "program")]
    done = subprocess.run(command, cwd=made.folder, capture_output=True, text=True, check=True)
    return int(re.search(r"Collected : (\d+)", done.stderr)[1])


def render(part: dict[str, Any]) -> str:
    """A table: a line for each target and net, instructions beside the dense net's."""
    dense = {r["target"]: r["instructions"] for r in part["rows"] if r["net"] == DENSE}
    lines = []
    for row in part["rows"]:
        executed, beside = row["instructions"], dense.get(row["target"])
        counted = "-" if executed is None else f"{executed:,}"
        fewer = "-" if executed is None or not beside else f"{beside / executed:.1f}"
        kinds = (row["code"], row["constants"], row["scratch"])
        lines.append((f"{row['target']}, {row['net']}", *map(size, kinds), counted, fewer))
    return table(
        ("target, net", "code", "constants", "scratch", "instructions a digit", "times fewer than dense"), lines
    )
