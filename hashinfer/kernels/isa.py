"""Which vector instructions kernels are compiled for: what the CPU has, or what HASHINFER_ISA names.

name         chosen where                                                    sixteen floats are
avx512       the CPU has AVX-512 F, BW, DQ and VL                            one register; radix-16 passes
avx2         the CPU has AVX2 and FMA, but no AVX-512                        two registers; radix-8 passes
portable     anything else: SSE2, NEON, ...                                  four registers; radix-8 passes
small        by name alone: cores without vectors, little memory             what LLVM makes of them; dyadic rows go
                                                                             float by float (kernels/dyadic_small.py)
integer      by name alone: as small, and without floating point             int8 dyadic rows go in int32
                                                                             (kernels/dyadic_integer.py)

A name that the CPU cannot run is refused. Kernels are the same source for all, and differ by the constants here; but
rows have kernels of their own for the last two.
"""

import os
import platform
import sys
from functools import cache
from pathlib import Path

from hashinfer.errors import InputError

AVX512, AVX2, PORTABLE, SMALL, INTEGER = "avx512", "avx2", "portable", "small", "integer"
NAMES = (AVX512, AVX2, PORTABLE, SMALL, INTEGER)
_NEEDED = {AVX512: ("avx512f", "avx512bw", "avx512dq", "avx512vl"), AVX2: ("avx2", "fma")}
MACHINES = {AVX512: "skylake-avx512", AVX2: "haswell", PORTABLE: "x86-64", SMALL: "x86-64", INTEGER: "x86-64"}
"""LLVM's name of a CPU that has what a name stands for, and no more."""

X86 = platform.machine().lower() in ("x86_64", "amd64")

_GATHER_STATE = Path("/sys/devices/system/cpu/vulnerabilities/gather_data_sampling")
_IDENTITY = (
    *("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "isa", "uarch"),
    *("Features", "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),
)
"""Lines of /proc/cpuinfo, on one architecture or another."""


@cache
def _processor() -> dict[str, str]:
    """What Linux says of the first processor; nothing on other systems."""
    if sys.platform != "linux":
        return {}
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs if key.strip() in _IDENTITY}


def cpu_identity() -> tuple[tuple[str, str], ...]:
    """What tells this CPU from another model; empty where the system does not say."""
    return tuple(sorted(_processor().items()))


def available() -> set[str]:
    """Names of what this CPU can do, of those that Numba may use."""
    named = os.environ.get("NUMBA_CPU_FEATURES")
    if os.environ.get("NUMBA_CPU_NAME") and named is not None:
        return {part[1:] for part in named.split(",") if part.startswith("+")}
    if not X86:
        return set()
    if "flags" in _processor():
        return set(_processor()["flags"].split())
    import llvmlite.binding as llvm  # noqa: PLC0415

    return {name for name, there in llvm.get_host_cpu_features().items() if there}


def possible() -> list[str]:
    """The names that this CPU can run, the fastest first."""
    features = available()
    return [name for name in NAMES if features.issuperset(_NEEDED.get(name, ()))]


def _choose() -> tuple[str, bool]:
    names = possible()
    chosen = os.environ.get("HASHINFER_ISA") or names[0]
    if chosen not in names:
        raise InputError(f"HASHINFER_ISA is {chosen!r}; this CPU runs {', '.join(names)}")
    return chosen, chosen != names[0] and X86


ISA, NARROWED = _choose()
"""NARROWED: whether the compiler must be kept from using all that the CPU has."""
SCALAR = ISA in (SMALL, INTEGER)
"""Whether kernels are for cores without vectors."""
RADIX = {AVX512: 16, SMALL: 4, INTEGER: 4}.get(ISA, 8)
"""Vectors that one pass of the transform holds in registers."""
REGISTER = {AVX512: 16, AVX2: 8}.get(ISA, 4)
"""Floats of one register: passes go register by register, so that what they hold does not spill."""
FUSES = ISA in (AVX512, AVX2)
"""Whether every CPU of this name has fused multiply-adds."""


def _gathers() -> bool:
    intel = ISA == AVX512 and "NUMBA_CPU_NAME" not in os.environ and _processor().get("vendor_id") == "GenuineIntel"
    try:
        return intel and _GATHER_STATE.read_text().strip() == "Not affected"
    except OSError:
        return False


GATHERS = _gathers()
"""Whether a gather beats sixteen loads: Intel's, where no microcode slows it."""
TILE_VECTORS = 4 if ISA == AVX512 else 1
"""Vectors of four rows each that a product with a tile of W sums up in registers."""
MOST_LANES = 1 if SCALAR else 16
"""Groups that a dyadic product transforms side by side: what its scratch grows with."""
