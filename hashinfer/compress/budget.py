"""How many numbers each hashed weight may keep, so that the whole model keeps within its ratio."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hashinfer.compress.find import TABLE, Weight
from hashinfer.errors import InputError
from hashinfer.schemes import Dyadic, Scheme, Xxh32

SMALL_SHARE = 0.05
"""Weights stay dense, the smallest first, as long as together they take no more than this share of the budget."""
SHARE_POWER = 0.75
"""A weight's buckets grow with this power of its size: small weights have less to share and are hashed less hard."""
MIN_GAIN = 1.25
"""A weight whose share is more than 1 / MIN_GAIN of its size stays dense."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What is decided before anything is fitted.

    schemes: by name of the hashed weights. dense: names that stay as they are, with the reason. numbers: what the
    model will store; allowed: what it may, floor(dense numbers / ratio), or None where the ratio is meant for chosen
    layers alone. note: what could not be kept to, in words.
    """

    schemes: Mapping[str, Scheme]
    dense: Mapping[str, str]
    numbers: int
    allowed: int | None
    note: str | None


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asks of each hashed weight."""

    scheme: str = Dyadic.name
    block: int = 1
    seed: int = 0


def allocate(weights: Sequence[Weight], total: int, ratio: float, wish: Wish, *, all_layers: bool) -> Budget:
    """Schemes for `weights` of a model of `total` numbers.

    all_layers: the ratio is the whole model's, its biases included, and weights too small to gain stay dense;
    otherwise it is that of `weights`, all of which are hashed. Where the numbers that cannot be hashed take the
    whole budget already, each weight is hashed by the ratio, and the note says so.
    Raises InputError where there is nothing to hash, or a weight would be left without a bucket.
    """
    if not weights:
        raise InputError("the model has no float32 weight of a MatMul, Gemm, Conv or Gather that could be hashed")
    hashed = sorted(weights, key=lambda w: w.size)
    dense: dict[str, str] = {}
    allowed, note = math.floor(total / ratio), None
    if all_layers:
        kept = 0
        while len(hashed) > 1 and kept + hashed[0].size <= SMALL_SHARE * allowed:
            small = hashed.pop(0)
            kept += small.size
            dense[small.name] = f"too small to gain: {small.size:,} of the {allowed:,} numbers allowed"
    size = sum(w.size for w in hashed)
    available, fixed = math.floor(size / ratio), total - size
    if all_layers and allowed - fixed >= len(hashed):
        available = allowed - fixed
    elif all_layers:
        note = (
            f"biases and other weights that are not hashed take {fixed:,} numbers, the ratio allows "
            f"{allowed:,} for the whole model: each hashed weight is compressed by {ratio:g} instead"
        )
    shares = _shares(hashed, available)
    while all_layers and len(hashed) > 1:
        richest = max(hashed, key=lambda w: shares[w] / w.size)
        if MIN_GAIN * shares[richest] < richest.size or available - richest.size < len(hashed):
            break
        dense[richest.name] = f"too small to gain: its share of the budget is {shares[richest]:,.0f} numbers"
        hashed.remove(richest)
        available -= richest.size
        shares = _shares(hashed, available)
    schemes = _fit(hashed, shares, available, wish)
    stored = sum(s.buckets for s in schemes.values()) + total - sum(w.size for w in hashed)
    return Budget(schemes, dense, stored, allowed if all_layers else None, note)


def _shares(weights: Sequence[Weight], available: int) -> dict[Weight, float]:
    powers = {w: w.size**SHARE_POWER for w in weights}
    scale = available / sum(powers.values())
    return {weight: scale * power for weight, power in powers.items()}


def _fit(weights: Sequence[Weight], shares: Mapping[Weight, float], available: int, wish: Wish) -> dict[str, Scheme]:
    """Schemes of at most `available` buckets together: shares rounded down, then what is left goes where it helps."""
    if available < len(weights):
        raise InputError(
            f"the ratio leaves {available} numbers for {len(weights)} hashed weights; expected a smaller ratio"
        )
    sizes = {w: _rounded(w, math.floor(shares[w]), wish) for w in weights}
    while sum(sizes.values()) > available:
        # Shares below one bucket were rounded up.
        largest = max(sizes, key=sizes.__getitem__)
        sizes[largest] = _rounded(largest, sizes[largest] - 1, wish)
    left = available - sum(sizes.values())
    while True:
        steps = {w: _next(w, sizes[w], left, wish) for w in weights}
        able = [w for w in weights if steps[w] > sizes[w]]
        if not able:
            break
        poorest = min(able, key=lambda w: sizes[w] / shares[w])
        left -= steps[poorest] - sizes[poorest]
        sizes[poorest] = steps[poorest]
    return {w.name: scheme_for(w, sizes[w], wish, at) for at, w in enumerate(weights)}


def scheme_for(weight: Weight, buckets: int, wish: Wish, at: int) -> Scheme:
    """The scheme of at most `buckets` numbers for a weight. Each weight has a seed of its own, from `at`."""
    seed = (wish.seed + at) % 2**32
    if weight.form == TABLE or wish.scheme == Xxh32.name:
        return Xxh32.fit(weight.rows, weight.cols, buckets, seed, min(wish.block, buckets))
    return Dyadic.fit(weight.rows, weight.cols, buckets, seed)


def _rounded(weight: Weight, buckets: int, wish: Wish) -> int:
    return scheme_for(weight, max(1, min(buckets, weight.size)), wish, 0).buckets


def _next(weight: Weight, size: int, left: int, wish: Wish) -> int:
    """The next larger number of buckets within `left` more, or `size` if there is none."""
    most = _rounded(weight, size + left, wish)
    scheme = scheme_for(weight, size, wish, 0)
    if most <= size or not isinstance(scheme, Dyadic):
        return max(most, size)
    full = 1 << (weight.rows - 1).bit_length()
    step = size + full if scheme.width == full else 2 * size
    return _rounded(weight, min(step, size + left), wish)
