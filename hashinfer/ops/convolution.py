"""Windows along axes, and the geometry of a convolution: sizes, strides and pads as ONNX defines them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Self

import numpy as np

from hashinfer.errors import OpError
from hashinfer.kernels import pooling
from hashinfer.kernels.rows import PATCH_FIELDS
from hashinfer.ops.base import Array, Call, Shape
from hashinfer.ops.emission import Arguments

AUTO_PADS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel goes along one axis of `size` elements, with `pads` of padding before and after: `count` times."""

    size: int
    kernel: int
    stride: int
    dilation: int
    pads: tuple[int, int]
    count: int

    @property
    def reach(self) -> int:
        """The number of elements, those of the padding among them, from the first window's first to the last's last."""
        return max(self.count - 1, 0) * self.stride + (self.kernel - 1) * self.dilation + 1

    def positions(self) -> range:
        """The kernel positions that are within the image for some output."""
        before, last = self.pads[0], (self.count - 1) * self.stride
        return range(
            max(-((last - before) // self.dilation), 0), min((before + self.size - 1) // self.dilation + 1, self.kernel)
        )

    def slices(self, k: int) -> tuple[slice, slice]:
        """The outputs whose kernel position k is within the image, and the elements it meets there."""
        offset = k * self.dilation - self.pads[0]
        first = max(-(offset // self.stride), 0)
        end = min((self.size - 1 - offset) // self.stride + 1, self.count)
        if first >= end:
            return slice(0, 0), slice(0, 0)
        start = first * self.stride + offset
        return slice(first, end), slice(start, start + (end - first - 1) * self.stride + 1, self.stride)

    def args(self, k: int) -> Arguments:
        """A kernel's arguments for axis k, as hashinfer.kernels.pooling.AXIS names them."""
        values = (self.size, self.count, self.kernel, self.stride, self.dilation, self.pads[0])
        return {f"{name}_{k}": value for name, value in zip(pooling.AXIS, values, strict=True)}


WHOLE = Window(1, 1, 1, 1, (0, 0), 1)
"""Along an axis that is not there."""


def meetings(windows: Sequence[Window]) -> Iterator[tuple[Shape, list[slice], list[slice]]]:
    """(kernel position, outputs, the elements they meet there), for every position that is within the image."""
    for position in product(*(window.positions() for window in windows)):
        met = [window.slices(k) for window, k in zip(windows, position, strict=True)]
        yield position, [output for output, _ in met], [element for _, element in met]


def need_auto_pad(call: Call) -> str:
    """The attribute `auto_pad`. Raises OpError unless it is one of AUTO_PADS."""
    auto = call.text("auto_pad", "NOTSET")
    if auto not in AUTO_PADS:
        raise OpError(f"auto_pad is {auto!r}; expected one of {', '.join(AUTO_PADS)}")
    return auto


def need_numbers(call: Call, name: str, count: int, default: int, least: int) -> Shape:
    """An attribute of `count` numbers, by default all `default`. Raises OpError for another number, or a lower one."""
    found = tuple(int(v) for v in call.get(name, (default,) * count))
    if len(found) != count or any(v < least for v in found):
        raise OpError(f"{name} is {list(found)}; expected {count} numbers, none below {least}")
    return found


def need_pads(call: Call, auto: str, spatial: int) -> Shape:
    """Begins and ends of the spatial axes: the attribute `pads`, zeros where it is not given or `auto` makes them."""
    return need_numbers(call, "pads", 2 * spatial, 0, 0) if auto == "NOTSET" else (0,) * (2 * spatial)


def shared_padding(auto: str, total: int) -> tuple[int, int]:
    """Padding that both ends of an axis share; with SAME_UPPER the odd element is behind, else before."""
    small, large = total // 2, total - total // 2
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def window(auto: str, ceil: bool, size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> Window:
    """The windows along one axis. Raises OpError if none fits.

    With auto_pad SAME, a stride longer than the window leaves elements out at the end: no pad is negative.
    """
    reach = dilation * (kernel - 1) + 1
    if auto.startswith("SAME"):
        count = -(-size // stride)
        pads = shared_padding(auto, max((count - 1) * stride + reach - size, 0))
        return Window(size, kernel, stride, dilation, pads, count)
    room = size + sum(pads) - reach
    if room < 0:
        raise OpError(f"a window of {reach} elements does not fit into {size} with {list(pads)} of padding")
    count = (-(-room // stride) if ceil else room // stride) + 1
    if ceil and (count - 1) * stride >= size + pads[0]:
        count -= 1
    return Window(size, kernel, stride, dilation, pads, count)


def need_kernel(call: Call, w: Shape) -> Shape:
    """The spatial sizes of the weights. Raises OpError where `kernel_shape` has others, or one is 0."""
    kernel = need_numbers(call, "kernel_shape", len(w) - 2, 1, 1) if "kernel_shape" in call.attrs else w[2:]
    if kernel != w[2:] or 0 in kernel:
        raise OpError(f"W has shape {list(w)}; expected kernel_shape {list(kernel)} at its end, without a 0")
    return kernel


def need_windows(call: Call, sizes: Shape, kernel: Shape, ceil: bool = False) -> list[Window]:
    """The windows along each spatial axis, as the attributes say. Raises OpError if they make no sense."""
    spatial, auto = len(sizes), need_auto_pad(call)
    strides = need_numbers(call, "strides", spatial, 1, 1)
    dilations = need_numbers(call, "dilations", spatial, 1, 1)
    pads = need_pads(call, auto, spatial)
    ends = zip(pads[:spatial], pads[spatial:], strict=True)
    return [window(auto, ceil, *each) for each in zip(sizes, kernel, strides, dilations, ends, strict=True)]


@dataclass(frozen=True, slots=True)
class Geometry:
    """x [batch, channels, height, width] convolved into [batch, out_channels, out_height, out_width].

    axes: of height and width; where there is one spatial dimension, it is the width, and the height is WHOLE.
    """

    batch: int
    channels: int
    out_channels: int
    groups: int
    axes: tuple[Window, Window]
    spatial: int

    @property
    def group_channels(self) -> int:
        return self.channels // self.groups

    @property
    def patch_size(self) -> int:
        return self.group_channels * self.axes[0].kernel * self.axes[1].kernel

    @property
    def pixels(self) -> int:
        """Of one plane of x."""
        return self.axes[0].size * self.axes[1].size

    @property
    def out_pixels(self) -> int:
        return self.axes[0].count * self.axes[1].count

    @property
    def out_shape(self) -> Shape:
        return (self.batch, self.out_channels, *(axis.count for axis in self.axes[2 - self.spatial :]))

    @classmethod
    def of(cls, call: Call, x: Shape, w: Shape) -> Self:
        """From a Conv node's attributes and the shapes of its operands. Raises OpError where they do not fit."""
        spatial = len(x) - 2
        if spatial not in (1, 2) or len(w) != len(x):
            raise OpError(f"X has shape {list(x)} and W {list(w)}; expected equal ranks of 3 or 4")
        groups = int(call.get("group", 1))
        if groups < 1 or x[1] != w[1] * groups or w[0] % groups:
            raise OpError(f"X has {x[1]} channels and W shape {list(w)} with group {groups}: channels do not fit")
        found = need_windows(call, x[2:], need_kernel(call, w))
        if any(axis.count < 1 for axis in found):
            raise OpError(f"X has shape {list(x)}; expected images of at least one element")
        return cls(x[0], x[1], w[0], groups, (WHOLE if spatial == 1 else found[0], found[-1]), spatial)

    def patch_array(self) -> Array:
        """The numbers that the kernels' `patches` argument points at."""
        rows, cols = self.axes
        values = {
            "channels": self.group_channels,
            "pad_top": rows.pads[0],
            "pad_left": cols.pads[0],
            "out_width": max(cols.count, 1),
            "image_stride": self.channels * self.pixels,
        }
        for name, axis in (("height", rows), ("width", cols)):
            values |= {name: axis.size, f"kernel_{name}": axis.kernel}
            values |= {f"stride_{name}": axis.stride, f"dilation_{name}": axis.dilation}
        return np.array([values[name] for name in PATCH_FIELDS], np.int64)
