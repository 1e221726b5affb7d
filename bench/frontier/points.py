"""What is trained for one data set, and how each net is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.frontier import forms
from bench.frontier.storage import FORMATS
from bench.paper.cells import PIXELS, WIDE, numbers, widest
from bench.paper.nets import Stack
from bench.paper.train import Recipe

UNITS = [PIXELS, WIDE, 10]
FULL = numbers(UNITS)

DENSE, HASHED, SMALL, LOW_RANK = "dense", "hashed", "smaller dense", "low rank"
MAGNITUDE, OBD, FEWER_BITS = "pruned by magnitude", "pruned by OBD", "fewer bits"
TUNED = {LOW_RANK: 0.004, MAGNITUDE: 0.004, OBD: 0.004, FEWER_BITS: 0.002}
"""Families that start from the trained dense net, and their peak learning rates, chosen on validation images
(`run --choose`, results/rates.csv)."""

RECIPE = Recipe(effort=860.0, most=60_000, drop=0.5)
"""bench.paper's without adversarial training, and with the dropout that suits that: 20 epochs of ROT, 11 of MNIST."""
RATES = (0.0005, 0.001, 0.002, 0.004)


@dataclass(frozen=True)
class Point:
    """One net: level is the compression factor of hashed and smaller dense nets and of what pruning keeps, the rank, or
    the bits."""

    family: str
    level: int = 1
    scheme: str = ""
    distilled: bool = False

    @property
    def name(self) -> str:
        """A name for files and for the screen."""
        parts = (self.family, self.scheme, str(self.level), "distilled" if self.distilled else "")
        return "-".join(p for p in parts if p).replace(" ", "-").lower()

    @property
    def formats(self) -> tuple[str, ...]:
        """How its numbers are stored: rounded after training, or in the one format that it was trained for."""
        if self.family == FEWER_BITS:
            return (f"int{self.level}",)
        return tuple(kind for kind in FORMATS if kind != "int2")

    def rate(self, recipe: Recipe) -> float:
        """Its peak learning rate."""
        return TUNED.get(self.family, recipe.lr)

    def make(self, dense: Stack | None, x: Tensor) -> Stack:
        """The net before its training. dense: the trained dense net, for TUNED families; x: inputs, for OBD."""
        torch.manual_seed(1)
        if self.family == DENSE:
            return forms.dense(UNITS)
        if self.family == SMALL:
            return forms.dense([PIXELS, widest(1, 10, FULL // self.level), 10])
        if self.family == HASHED:
            return forms.hashed(self.scheme, UNITS, FULL // self.level, 1)
        assert dense is not None
        if self.family == FEWER_BITS:
            return Stack(forms.Quantised(layer, f"int{self.level}") for layer in dense.layers)
        if self.family == LOW_RANK:
            thin = [min(layer.weight.shape) > self.level for layer in dense.layers]
            parts = zip(dense.layers, thin, strict=True)
            return Stack(forms.LowRank(layer, self.level) if low else forms.copy_of(layer) for layer, low in parts)
        curvature = forms.importance(dense, x[:: max(1, len(x) // 4000)]) if self.family == OBD else None
        kept = forms.masks(dense, 1 / self.level, curvature)
        return Stack(forms.Pruned(layer, mask) for layer, mask in zip(dense.layers, kept, strict=True))


def points() -> list[Point]:
    """The dense net first, then what is worth knowing first."""
    out = [Point(DENSE)]
    out += [Point(HASHED, c, "dyadic") for c in (64, 8, 512, 16, 128, 32, 256, 4)]
    out += [Point(HASHED, c, "xxh32") for c in (64, 8, 512, 4)]
    out += [Point(SMALL, c) for c in (64, 8, 256, 16, 4)]
    out += [Point(LOW_RANK, r) for r in (8, 32, 4, 16, 2)]
    out += [Point(MAGNITUDE, c) for c in (16, 64, 8, 32, 4)]
    out += [Point(FEWER_BITS, b) for b in (4, 2)]
    out += [Point(OBD, c) for c in (16, 64, 8, 32)]
    out += [Point(HASHED, c, "dyadic", distilled=True) for c in (64, 8, 512)]
    out += [Point(SMALL, c, distilled=True) for c in (64, 8, 256)]
    return out
