"""Which vector instructions kernels are compiled for: what the CPU has, or what HASHINFER_ISA names.

===========  ==============================================================  =======================================
name         chosen where                                                    sixteen floats are
===========  ==============================================================  =======================================
avx512       the CPU has AVX-512 F, BW, DQ and VL                            one register; radix-16 passes
avx2         the CPU has AVX2 and FMA, but no AVX-512                        two registers; radix-8 passes
portable     anything else: SSE2, NEON, ...                                  what LLVM makes of them; radix-8 passes
===========  ==============================================================  =======================================

A name that the CPU cannot run is refused. Kernels are the same source for all three; only the constants here differ.
"""

from __future__ import annotations

import os

import llvmlite.binding as llvm
import numba

from hashinfer.errors import InputError

AVX512, AVX2, PORTABLE = "avx512", "avx2", "portable"
NAMES = (AVX512, AVX2, PORTABLE)
_NEEDED = {AVX512: ("avx512f", "avx512bw", "avx512dq", "avx512vl"), AVX2: ("avx2", "fma"), PORTABLE: ()}
_MACHINES = {AVX512: "skylake-avx512", AVX2: "haswell", PORTABLE: "x86-64"}


def _available() -> set[str]:
    named = numba.config.CPU_FEATURES
    if numba.config.CPU_NAME and named is not None:
        return {part[1:] for part in named.split(",") if part.startswith("+")}
    return {name for name, there in llvm.get_host_cpu_features().items() if there}


def _choose() -> str:
    features = _available()
    possible = [name for name in NAMES if features.issuperset(_NEEDED[name])]
    chosen = os.environ.get("HASHINFER_ISA") or possible[0]
    if chosen not in possible:
        raise InputError(f"HASHINFER_ISA is {chosen!r}; this CPU runs {', '.join(possible)}")
    if chosen != possible[0] and "x86_64" in llvm.get_process_triple():
        # Numba reads these when it compiles for the first time in a process.
        numba.config.CPU_NAME = _MACHINES[chosen]
        numba.config.CPU_FEATURES = ""
    return chosen


ISA = _choose()
RADIX = 16 if ISA == AVX512 else 8
"""Vectors that one pass of the transform holds in registers."""
