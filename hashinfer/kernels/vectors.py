"""What kernels import of `intrinsics`, by name: an intrinsic, and Numba with it, is made when it is first needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hashinfer.kernels.jit import Deferred

LANES = 16

_NAMES = """
    add16 add_word16 atomic_add atomic_load atomic_store butterflies2 butterflies4 butterflies8 butterflies16
    byte_pairs16 byte_run16 byte_words16 bytes16 call_entry columns8 dot16 flip16 flip_odd16 float32_array
    float32_bits float64_array float_bits fma16 int8_array int32_array int64_array intp intp_array intp_at largest16
    load16 load_even16 load_lanes16 max16 modulated_lanes1 modulated_lanes2 modulated_lanes4 modulated_lanes8
    modulated_lanes16 mul16 nonzero16 pair16 pick16 product quotient ramp16 relax relu16 signed_sum2 signed_sum4
    signed_sum8 signed_sum16 splat16 store16 store_lanes16 sum16 swap1 swap2 swap4 swap8 transpose16 uint8_array
    uint16_array uint32_array uintp weights16 xxh32_slots16
"""
NAMES = frozenset(_NAMES.split())


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = Deferred(lambda: getattr(import_module("hashinfer.kernels.intrinsics"), name), name)
    globals()[name] = found
    return found
