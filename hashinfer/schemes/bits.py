"""32-bit unsigned arithmetic of the hash functions, on Python integers and on uint64 arrays alike.

Sources: xxHash (XXH32, doc/xxhash_spec.md); MurmurHash3 (fmix32).
"""

from typing import Any, TypeVar

import numpy.typing as npt

MASK = 0xFFFFFFFF

XXH_PRIME1, XXH_PRIME2, XXH_PRIME3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
XXH_PRIME4, XXH_PRIME5 = 0x27D4EB2F, 0x165667B1
FMIX_MUL1, FMIX_MUL2 = 0x85EBCA6B, 0xC2B2AE35

Bits = TypeVar("Bits", int, npt.NDArray[Any])


def fmix32(h: Bits) -> Bits:
    """MurmurHash3's finaliser: a bijection of 32-bit words."""
    h = h & MASK
    h = ((h ^ (h >> 16)) * FMIX_MUL1) & MASK
    h = ((h ^ (h >> 13)) * FMIX_MUL2) & MASK
    return h ^ (h >> 16)


def xxh32_pair(i: Bits, b: Bits, seed: int) -> Bits:
    """XXH32 of the eight bytes le32(i) || le32(b)."""
    h = (_rotl17(((seed + XXH_PRIME5 + 8) & MASK) + i * XXH_PRIME3) * XXH_PRIME4) & MASK
    h = (_rotl17(h + b * XXH_PRIME3) * XXH_PRIME4) & MASK
    h = ((h ^ (h >> 15)) * XXH_PRIME2) & MASK
    h = ((h ^ (h >> 13)) * XXH_PRIME3) & MASK
    hashed: Bits = h ^ (h >> 16)
    return hashed


def _rotl17(v: Any) -> Any:
    v = v & MASK
    return ((v << 17) | (v >> 15)) & MASK
