"""Start-up, memory and footprint of one digit classified in a fresh process: this project's three ways, and others'."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.native import litert
from bench.tables import size, table
from hashinfer.native.emit.build import build
from hashinfer.native.emit.targets import resolve

ROOT = Path(__file__).resolve().parent.parent.parent
MODELS = ROOT / "models"
RUNS = 11
ALONE = "NumPy alone, no model"
DIGITS = str(MODELS / "mnist-test-1k.npy")

OURS = """
import sys, numpy as np, hashinfer
session = hashinfer.InferenceSession(sys.argv[1])
print(session(np.load(sys.argv[2], mmap_mode="r")[:1]).argmax())
"""
NUMPY = "import sys, numpy as np; print(np.load(sys.argv[2], mmap_mode='r')[0].max())"
ONNXRUNTIME = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(session.run(None, {"image": np.load(sys.argv[2], mmap_mode="r")[:1]})[0].argmax())
"""
TRACT = """
import sys, numpy as np, tract
model = tract.onnx().load(sys.argv[1])
model.set_input_fact(0, "1,28,28,u8")
session = model.into_model().into_runnable()
print(session.run([np.load(sys.argv[2], mmap_mode="r")[:1]])[0].to_numpy().argmax())
"""
LITERT = """
import sys, numpy as np
from ai_edge_litert.interpreter import Interpreter
model = Interpreter(sys.argv[1], num_threads=1)
model.allocate_tensors()
model.set_tensor(model.get_input_details()[0]["index"], np.load(sys.argv[2], mmap_mode="r")[:1])
model.invoke()
print(model.get_tensor(model.get_output_details()[0]["index"]).argmax())
"""
TIMER = """
import os, sys, time
started = time.perf_counter()
process = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(process, 0)
if status:
    sys.exit(f"{sys.argv[1:]} ended with status {status}")
print(time.perf_counter() - started, used.ru_maxrss)
"""


def measure(folder: Path) -> list[dict[str, Any]]:
    """A row for each way. folder: for the models in other forms."""
    source, library, dense = MODELS / "mnist-dyadic-64x.hnet", folder / "digits.so", folder / "dense.onnx"
    for path, kind in ((library, "so"), (folder / "digits.o", "o")):
        built = build(source, resolve("host"), kind, "digits")
        path.write_bytes(built.data)
    (folder / "digits.h").write_text(built.header)
    compiler = next(cc for cc in ("cc", "gcc", "clang") if shutil.which(cc))
    example = [compiler, "-O2", f"-I{folder}", str(Path(__file__).with_name("classify.c")), str(folder / "digits.o")]
    subprocess.run([*example, "-lm", "-o", str(folder / "classify")], check=True)
    subprocess.run([sys.executable, "-m", "hashinfer", "expand", str(source), "-o", str(dense)], check=True)
    lite = folder / "dense.tflite"
    if _installed("ai-edge-litert"):
        litert.write(dense, lite)
    ways: list[tuple[str, list[str], Sequence[str], int]] = [
        (ALONE, [sys.executable, "-c", NUMPY, "", DIGITS], ("numpy",), 0),
        ("C program with the compiled model", [str(folder / "classify"), DIGITS, "0"], (), _file(folder / "classify")),
        ("hashinfer, compiled model (.so)", [sys.executable, "-c", OURS, str(library), DIGITS], ("numpy",), _own()),
        ("hashinfer, .hnet, warm cache", [sys.executable, "-c", OURS, str(source), DIGITS], ("hashinfer",), 0),
        ("onnxruntime, dense net", [sys.executable, "-c", ONNXRUNTIME, str(dense), DIGITS], ("onnxruntime",), 0),
        ("tract, dense net", [sys.executable, "-c", TRACT, str(dense), DIGITS], ("tract",), 0),
        ("LiteRT, dense net", [sys.executable, "-c", LITERT, str(lite), DIGITS], ("ai-edge-litert",), 0),
    ]
    there = [way for way in ways if all(_installed(name) for name in way[2])]
    for name, *_ in (way for way in ways if way not in there):
        print(f"left out: {name}: not installed", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name, *_ in there}
    peaks: dict[str, int] = {}
    digits: dict[str, str] = {}
    for turn in range(RUNS + 1):
        for name, command, _, _ in there:
            digits[name], took, peak = _run(command)
            if turn:
                seconds[name].append(took)
                peaks[name] = max(peak, peaks.get(name, 0))
    found = {digit for name, digit in digits.items() if name != ALONE}
    if len(found) != 1:
        raise ValueError(f"the ways disagree: {digits}")
    return [
        {
            "way": name,
            "ms": 1000 * statistics.median(seconds[name]),
            "peak": peaks[name],
            "footprint": own + footprint(packages),
            "packages": list(packages),
        }
        for name, _, packages, own in there
    ]


def _run(command: list[str]) -> tuple[str, float, int]:
    """(the last word that it says, seconds, peak resident bytes) of one process.

    It is started by a small one: Linux counts what a process was before it began its program as part of its peak.
    """
    done = subprocess.run([sys.executable, "-S", "-c", TIMER, *command], capture_output=True, cwd=ROOT, check=True)
    *said, timed = done.stdout.decode().splitlines()
    seconds, peak = timed.split()
    return said[-1].split()[-1], float(seconds), 1024 * int(peak)


def _file(path: Path) -> int:
    return path.stat().st_size


def _own() -> int:
    """What a compiled model needs of this package: without the compiler and the format."""
    package = ROOT / "hashinfer"
    needed = ("__init__", "errors", "native/__init__", "native/runtime", "session/__init__", "session/choice")
    return sum(_file(package / f"{name}.py") for name in (*needed, "session/compiled", "session/options"))


def _installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def footprint(packages: Sequence[str]) -> int:
    """Bytes of installed packages and all that they require, without extras and bytecode."""
    seen: set[str] = set()
    waiting, total = list(packages), 0
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen or not _installed(name):
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        if name == "hashinfer":
            # An editable install lists no files.
            total += sum(_file(p) for p in (ROOT / "hashinfer").rglob("*") if p.suffix in (".py", ".json", ".md"))
        else:
            files = [Path(str(f.locate())) for f in distribution.files or () if f.suffix != ".pyc"]
            total += sum(_file(path) for path in files if path.is_file())
        needs = [requirement for requirement in distribution.requires or () if "extra ==" not in requirement]
        waiting += [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in needs]
    return total


def render(part: dict[str, Any]) -> str:
    """A table: a line for each way."""
    rows = part["rows"]
    alone = next(row["ms"] for row in rows if not row["packages"] or row["packages"] == ["numpy"])
    lines = [
        (row["way"], f"{row['ms']:.0f} ms", f"{row['ms'] / alone:.2f}", size(row["peak"]), size(row["footprint"]))
        for row in rows
    ]
    return table(("one digit in a fresh process", "time", "beside NumPy", "peak memory", "installed size"), lines)
