"""The jitted form of the hash schemes (`hashinfer.schemes` is their specification; tests hold the two together).

Every integer operation is wrapped in uint32: Numba types uint32 * uint32 as uint64, and an index that grew past 32
bits would leave the table.
"""

from typing import Any

import numpy as np

from hashinfer.kernels.jit import at_first_compile, device, inlined
from hashinfer.kernels.vectors import intp, ramp16

_P2, _P3, _P4, _P5 = np.uint32(0x85EBCA77), np.uint32(0xC2B2AE3D), np.uint32(0x27D4EB2F), np.uint32(0x165667B1)
_M1, _M2 = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_ROW, _COL, _SALT = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77), np.uint32(0x5BD1E995)
_A0, _A1, _A2 = np.uint32(0x9E3779B1), np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
_S10, _S13, _S15, _S16, _S17 = np.uint32(10), np.uint32(13), np.uint32(15), np.uint32(16), np.uint32(17)
_S20, _S31, _EIGHT, _ONE = np.uint32(20), np.uint32(31), np.uint32(8), np.uint32(1)


@inlined
def fmix32(h: Any) -> Any:
    """MurmurHash3's finaliser on a uint32."""
    h = np.uint32(np.uint32(h ^ np.uint32(h >> _S16)) * _M1)
    h = np.uint32(np.uint32(h ^ np.uint32(h >> _S13)) * _M2)
    return np.uint32(h ^ np.uint32(h >> _S16))


@inlined
def xxh32_prefix(i: Any, seed: Any) -> Any:
    """The state of XXH32 after le32(i): what all cells of row i share."""
    h = np.uint32(np.uint32(np.uint32(seed) + _P5) + _EIGHT)
    h = np.uint32(h + np.uint32(np.uint32(i) * _P3))
    return np.uint32(np.uint32(np.uint32(h << _S17) | np.uint32(h >> _S15)) * _P4)


@inlined
def column_word(b: Any) -> Any:
    """What the second four bytes, le32(b), add to the state of XXH32."""
    return np.uint32(np.uint32(b) * _P3)


@inlined
def xxh32_mixed(h: Any) -> Any:
    """The end of XXH32 of eight bytes, from the state to which a column_word has been added."""
    h = np.uint32(np.uint32(np.uint32(h << _S17) | np.uint32(h >> _S15)) * _P4)
    h = np.uint32(np.uint32(h ^ np.uint32(h >> _S15)) * _P2)
    h = np.uint32(np.uint32(h ^ np.uint32(h >> _S13)) * _P3)
    return np.uint32(h ^ np.uint32(h >> _S16))


@inlined
def xxh32_finish(prefix: Any, b: Any) -> Any:
    """XXH32 of eight bytes, from the state after the first four and the second four as a number."""
    return xxh32_mixed(np.uint32(prefix + column_word(b)))


@inlined
def column_words16(prefix: Any, b: Any) -> Any:
    """Sixteen states of one row of W with b, b + 1, ... added."""
    return ramp16(np.uint32(prefix + column_word(b)), _P3)


@inlined
def signed_slot(hashed: Any, slots: Any) -> Any:
    """(hash * slots) >> 32 as uint32, below `slots` < 2^31: bit 0 is the sign, the rest the first bucket."""
    return np.uint32((np.uint64(hashed) * np.uint64(np.uint32(slots))) >> np.uint64(32))


@inlined
def first_bucket(slot: Any) -> Any:
    """Where in w the run of a signed slot begins."""
    return intp(slot >> _ONE)


@inlined
def sign_of(bit: Any) -> Any:
    """-1.0 of 1, 1.0 of 0."""
    return np.float32(1.0) - np.float32(2.0) * np.float32(bit)


@inlined
def sign_at(signs: Any, i: Any) -> Any:
    """-1.0 where bit i is set, else 1.0."""
    return sign_of((intp(signs[i >> 4]) >> (i & 15)) & 1)


@inlined
def slot_sign(slot: Any) -> Any:
    """-1.0 where the slot is odd, else 1.0."""
    return sign_of(np.uint32(slot & _ONE))


@inlined
def row_sign(i: Any, seed: Any) -> Any:
    """s(i) of the dyadic scheme, -1.0 or 1.0."""
    key = np.uint32(np.uint32(np.uint32(i) * _ROW) + np.uint32(seed))
    return sign_of(np.uint32(fmix32(key) >> _S31))


@inlined
def col_sign(j: Any, seed: Any) -> Any:
    """r(j) of the dyadic scheme, -1.0 or 1.0."""
    key = np.uint32(np.uint32(np.uint32(j) * _COL) + np.uint32(np.uint32(seed) ^ _SALT))
    return sign_of(np.uint32(fmix32(key) >> _S31))


@inlined
def _perm_round(x: Any, offset: Any, multiplier: Any, mask: Any, half: Any) -> Any:
    x = np.uint32(np.uint32(np.uint32(np.uint32(x + offset) & mask) * multiplier) & mask)
    return np.uint32(x ^ np.uint32(x >> half))


@inlined
def permute(t: Any, width: Any, half: Any, seed: Any) -> Any:
    """perm(t) of the dyadic scheme. width: a power of two; half: ceil(log2(width) / 2)."""
    mask = np.uint32(np.uint32(width) - _ONE)
    if mask == np.uint32(0):
        return np.uint32(0)
    f = fmix32(np.uint32(seed))
    x = np.uint32(np.uint32(t) & mask)
    x = _perm_round(x, f, _A0, mask, np.uint32(half))
    x = _perm_round(x, np.uint32(f >> _S10), _A1, mask, np.uint32(half))
    return _perm_round(x, np.uint32(f >> _S20), _A2, mask, np.uint32(half))


@device
def half_to_float(bits: Any) -> Any:
    """The float32 of a float16's bits: exact, subnormals, Inf and NaN among them."""
    wide = np.uint32(bits)
    magnitude = np.uint32(np.uint32(wide & np.uint32(0x7FFF)) << _S13)
    value = np.uint32(magnitude).view(np.float32) * np.float32(2.0**112)
    if magnitude >= np.uint32(0x7C00 << 13):
        value = np.uint32(magnitude | np.uint32(0x7F800000)).view(np.float32)
    return -value if wide & np.uint32(0x8000) else value


def weight(w: Any, k: Any) -> Any:
    """w[k] as float32, where w holds float32, int8, or float16 as uint16 bits."""
    return half_to_float(w[k]) if w.dtype == np.uint16 else np.float32(w[k])


def _type_weight() -> None:
    from numba.extending import overload  # noqa: PLC0415

    @overload(weight, inline="always", strict=False)  # type: ignore[untyped-decorator]
    def _weight(w: Any, k: Any) -> Any:
        if w.dtype.name == "uint16":
            return lambda w, k: half_to_float(w[k])
        return lambda w, k: np.float32(w[k])


at_first_compile.append(_type_weight)
