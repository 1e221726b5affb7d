"""The geometry of a convolution: sizes, strides and pads as ONNX defines them, one spatial dimension as two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels.rows import PATCH_FIELDS
from hashinfer.ops.base import Array, Call, Shape

_AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True, slots=True)
class Geometry:
    """x [batch, channels, height, width] convolved into [batch, out_channels, out_height, out_width]."""

    batch: int
    channels: int
    height: int
    width: int
    out_channels: int
    groups: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    out_height: int
    out_width: int
    spatial: int

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def patch_size(self) -> int:
        return self.group_channels * self.kernel[0] * self.kernel[1]

    @property
    def out_pixels(self) -> int:
        return self.out_height * self.out_width

    @property
    def out_shape(self) -> Shape:
        if self.spatial == 1:
            return (self.batch, self.out_channels, self.out_width)
        return (self.batch, self.out_channels, self.out_height, self.out_width)

    @classmethod
    def of(cls, call: Call, x: Shape, w: Shape) -> Self:
        """From a Conv node's attributes and the shapes of its operands. Raises OpError where they do not fit."""
        spatial = len(x) - 2
        if spatial not in (1, 2) or len(w) != len(x):
            raise OpError(f"X has shape {list(x)} and W {list(w)}; expected equal ranks of 3 or 4")
        groups = int(call.get("group", 1))
        if groups < 1 or x[1] != w[1] * groups or w[0] % groups:
            raise OpError(f"X has {x[1]} channels and W shape {list(w)} with group {groups}: channels do not fit")
        kernel = _two(tuple(call.get("kernel_shape", w[2:])), spatial, 1, "kernel_shape")
        if kernel != _two(w[2:], spatial, 1, "W"):
            raise OpError(f"kernel_shape is {list(call.attrs['kernel_shape'])}; W has shape {list(w)}")
        strides = _two(tuple(call.get("strides", (1,) * spatial)), spatial, 1, "strides")
        dilations = _two(tuple(call.get("dilations", (1,) * spatial)), spatial, 1, "dilations")
        size = _two(x[2:], spatial, 1, "X")
        pads = _pads(call, spatial, size, kernel, strides, dilations)
        out = []
        for axis in range(2):
            reach = dilations[axis] * (kernel[axis] - 1) + 1
            room = size[axis] + pads[axis] + pads[axis + 2] - reach
            if room < 0 or min(kernel) < 1:
                raise OpError(f"the kernel reaches over {reach} of {room + reach} padded pixels")
            out.append(room // strides[axis] + 1)
        return cls(x[0], x[1], *size, w[0], groups, kernel, strides, dilations, pads, out[0], out[1], spatial)

    def patch_array(self) -> Array:
        """The numbers that the kernels' `patches` argument points at."""
        values = {
            "channels": self.group_channels,
            "height": self.height,
            "width": self.width,
            "kernel_height": self.kernel[0],
            "kernel_width": self.kernel[1],
            "stride_height": self.strides[0],
            "stride_width": self.strides[1],
            "dilation_height": self.dilations[0],
            "dilation_width": self.dilations[1],
            "pad_top": self.pads[0],
            "pad_left": self.pads[1],
            "out_width": max(self.out_width, 1),
            "image_stride": self.channels * self.height * self.width,
        }
        return np.array([values[name] for name in PATCH_FIELDS], np.int64)


def _two(values: Shape, spatial: int, fill: int, what: str) -> tuple[int, int]:
    if len(values) != spatial or (what != "X" and any(v < 1 for v in values)):
        raise OpError(f"{what} is {list(values)}; expected {spatial} numbers above 0")
    return (fill, values[0]) if spatial == 1 else (values[0], values[1])


def _pads(
    call: Call,
    spatial: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
) -> tuple[int, int, int, int]:
    """(top, left, bottom, right)."""
    auto = str(call.get("auto_pad", "NOTSET"))
    if auto not in _AUTO_PADS:
        raise OpError(f"auto_pad is {auto!r}; expected one of {', '.join(_AUTO_PADS)}")
    if auto == "VALID":
        return (0, 0, 0, 0)
    if auto == "NOTSET":
        pads = tuple(call.get("pads", (0,) * (2 * spatial)))
        if len(pads) != 2 * spatial or any(p < 0 for p in pads):
            raise OpError(f"pads is {list(pads)}; expected {2 * spatial} numbers, none below 0")
        return (0, pads[0], 0, pads[1]) if spatial == 1 else (pads[0], pads[1], pads[2], pads[3])
    before, after = [], []
    for axis in range(2):
        out = -(-size[axis] // strides[axis])
        total = max(0, (out - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1 - size[axis])
        small, large = total // 2, total - total // 2
        before.append(small if auto == "SAME_UPPER" else large)
        after.append(large if auto == "SAME_UPPER" else small)
    return (before[0], before[1], after[0], after[1])
