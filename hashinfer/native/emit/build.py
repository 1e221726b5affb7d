"""Builds a model for a target: the compiling process is started, its object linked where a library is wanted."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hashinfer import errors
from hashinfer.errors import HashinferError, InputError
from hashinfer.kernels.isa import AVX2, AVX512, INTEGER, PORTABLE, SMALL, possible
from hashinfer.native.emit.header import KEYWORDS, c_name
from hashinfer.native.emit.link import link_shared, linker
from hashinfer.native.emit.targets import Target

_AVX512 = "x86-64-v4 skylake-avx512 cascadelake cooperlake icelake-client icelake-server rocketlake tigerlake \
sapphirerapids emeraldrapids graniterapids znver4 znver5"
_AVX2 = "x86-64-v3 haswell broadwell skylake alderlake raptorlake meteorlake znver1 znver2 znver3"
WIDER = {AVX512: _AVX512.split(), AVX2: (_AVX512 + " " + _AVX2).split()}
"""CPUs, as LLVM names them, that get more than the portable form of the kernels."""
FORMATS = ("o", "so", "wheel-dir")


@dataclass(frozen=True, slots=True)
class Built:
    """What came out: the object's or the library's bytes, the C header, what is said about them."""

    data: bytes
    header: str
    about: dict[str, Any]


def build(
    model: str | os.PathLike[str],
    target: Target,
    kind: str,
    name: str | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    told: Callable[[str], None] = lambda _step: None,
) -> Built:
    """Compile a model file. kind: "o", or "so" and "wheel-dir", which both make a shared library.

    name: what C names begin with, by default the file's own.

    shapes: fixed shapes of inputs; an input without one is taken row by row where its first dimension is open.
    Raises InputError, ModelError, UnsupportedError (a node outside the native subset, a missing linker) before anything
    is written.
    """
    if kind not in FORMATS:
        raise InputError(f"format {kind!r}; expected {' or '.join(FORMATS)}")
    path = Path(model)
    chosen = c_name(path.stem) if name is None else name
    if chosen != c_name(chosen) or chosen in KEYWORDS:
        raise InputError(f"name {chosen!r} is no C identifier")
    shared = kind != "o"
    if shared:
        linker(target)
    with tempfile.TemporaryDirectory(prefix="hashinfer-") as folder:
        job = {
            "model": str(path.absolute()),
            "source": path.name,
            "target": asdict(target),
            "name": chosen,
            "shapes": {k: list(v) for k, v in (shapes or {}).items()},
            "shared": shared,
            "folder": folder,
        }
        about = _work(job, target, told)
        object_file, header = Path(folder) / "model.o", (Path(folder) / "model.h").read_text()
        if shared:
            told("linking")
            return Built(link_shared(object_file, target, Path(folder)), header, about)
        return Built(object_file.read_bytes(), header, about)


def _work(job: dict[str, Any], target: Target, told: Callable[[str], None]) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "hashinfer.native.emit.worker"]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment(target)
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        try:
            process.stdin.write(json.dumps(job))
            process.stdin.close()
            last: dict[str, Any] = {}
            for line in process.stdout:
                last = json.loads(line)
                if "step" in last:
                    told(last["step"])
        except BaseException:
            process.kill()
            raise
        process.wait()
        if "error" in last:
            kind = getattr(errors, last["error"], None) or {"FileNotFoundError": FileNotFoundError}.get(last["error"])
            raise (kind or HashinferError)(last["text"])
        if "done" not in last:
            log.seek(0)
            said = log.read().strip().splitlines() or ["nothing"]
            raise HashinferError(f"the compiling process ended with code {process.returncode} and said: {said[-1]}")
        return dict(last["done"])


def _environment(target: Target) -> dict[str, str]:
    out = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    out["NUMBA_OPT"] = "0"
    out["HASHINFER_ISA"] = _isa(target)
    here = str(Path(errors.__file__).parent.parent)
    out["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [out.get("PYTHONPATH")])])
    return out


def _isa(target: Target) -> str:
    """Which form of the kernels is emitted. This CPU must be able to run it: it takes the spectrum."""
    if target.small:
        return INTEGER if target.soft else SMALL
    there = possible()
    if target.name == "host" and not target.cpu:
        return there[0]
    wanted = (name for name, cpus in WIDER.items() if target.cpu in cpus and name in there)
    return next(wanted, PORTABLE)
