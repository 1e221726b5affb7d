"""What a figure was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

COMPARED = ("numba", "llvmlite", "numpy", "onnx", "onnxruntime", "openvino")


def environment() -> dict[str, Any]:
    """CPU and caches, vector extensions and the one kernels use, processors, system, versions of what is compared."""
    import hashinfer
    from hashinfer.kernels.isa import ISA

    info = _cpu_info()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name", platform.processor() or platform.machine()),
        "vector_extensions": [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_tile", "asimd", "sve") if f in flags],
        "kernels_use": ISA,
        "caches": _caches(),
        "processors": processors(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {"hashinfer": hashinfer.__version__} | {name: _version(name) for name in COMPARED},
    }


def processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _caches() -> dict[str, int]:
    """Bytes of the first processor's data caches by level, where the system says."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((index / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind != "Instruction" and size.endswith("K"):
            found[f"L{level}"] = 1024 * int(size[:-1])
    return found


def _cpu_info() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
