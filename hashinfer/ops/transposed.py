"""The transpose of a convolution, with any number of spatial axes: each input adds the kernel to the outputs it meets.

Input i meets output i stride + k dilation - pad at kernel position k. All inputs of one k are taken at once, by one
product over the channels, and outputs that are padding are left out of the slices.
"""

from itertools import product
from typing import Any

import numpy as np

from hashinfer.errors import OpError
from hashinfer.ops.base import Arrays, Call, Inputs, Op, Outputs, Shape, Types, optional, register
from hashinfer.ops.checks import FLOATS, array, need, need_dtype, need_rank, need_same_dtype, tensor
from hashinfer.ops.convolution import (
    Window,
    meetings,
    need_auto_pad,
    need_kernel,
    need_numbers,
    need_pads,
    shared_padding,
)


@register("ConvTranspose")
class ConvTranspose(Op):
    """X [N, C, ...] and W [C, M / group, ...] to [N, M, ...]. Sums in float32 at least."""

    def windows(self, call: Call, x: Shape, w: Shape) -> list[Window]:
        """How the kernel goes along each axis of the output, once for each input.

        Raises OpError where the operands and attributes do not fit together.
        """
        spatial = len(x) - 2
        groups = int(call.get("group", 1))
        if len(w) != len(x) or groups < 1 or x[1] != w[0] or w[0] % groups:
            raise OpError(f"X has shape {list(x)}, W {list(w)} and group {groups}: ranks or channels do not fit")
        kernel = need_kernel(call, w)
        strides = need_numbers(call, "strides", spatial, 1, 1)
        dilations = need_numbers(call, "dilations", spatial, 1, 1)
        more = need_numbers(call, "output_padding", spatial, 0, 0)
        auto = need_auto_pad(call)
        parts = zip(x[2:], kernel, strides, dilations, more, strict=True)
        whole = [s * (n - 1) + p + d * (k - 1) + 1 for n, k, s, d, p in parts]
        if "output_shape" in call.attrs or auto.startswith("SAME"):
            out = tuple(n * s for n, s in zip(x[2:], strides, strict=True))
            if "output_shape" in call.attrs:
                out = need_numbers(call, "output_shape", spatial, 1, 0)
            # What is left over is shared by both ends.
            before = tuple(shared_padding(auto, n - m)[0] for n, m in zip(whole, out, strict=True))
        else:
            pads = need_pads(call, auto, spatial)
            before = pads[:spatial]
            out = tuple(n - a - b for n, a, b in zip(whole, before, pads[spatial:], strict=True))
        if any(n < 0 for n in out) or 0 in x[2:]:
            raise OpError(f"the output would have shape {list(out)}")
        ends = [(pad, 0) for pad in before]
        return [Window(*each) for each in zip(out, kernel, strides, dilations, ends, x[2:], strict=True)]

    def supports(self, call: Call, ins: Inputs) -> bool:
        x = optional(ins, 0)
        return x is None or (x.dtype in FLOATS and x.rank > 2)

    def infer(self, call: Call, ins: Inputs) -> Types:
        x, w, bias = need(ins, 0, "X"), need(ins, 1, "W"), optional(ins, 2)
        need_dtype(x, FLOATS, "X")
        need_rank(x, 3, "X")
        need_same_dtype(x, w, "W")
        windows = self.windows(call, x.shape, w.shape)
        maps = w.shape[1] * int(call.get("group", 1))
        if bias is not None and (bias.dtype != x.dtype or bias.shape != (maps,)):
            raise OpError(f"B is {bias.type}; expected {x.dtype}[{maps}]")
        return [tensor(x.dtype, (x.shape[0], maps, *(window.size for window in windows)))]

    def run(self, call: Call, ins: Arrays, outs: Outputs) -> None:
        x, w, (out,) = array(ins, 0), array(ins, 1), outs
        windows, groups = self.windows(call, x.shape, w.shape), int(call.get("group", 1))
        wide = np.result_type(x, np.float32)
        inner, outer = w.shape[0] // groups, w.shape[1]
        for n, group in product(range(x.shape[0]), range(groups)):
            channels = slice(group * inner, (group + 1) * inner)
            total = np.zeros((outer, *out.shape[2:]), wide)
            for k, sources, targets in meetings(windows):
                met: Any = (n, channels, *sources)
                taken: Any = (channels, slice(None), *k)
                to: Any = (slice(None), *targets)
                image, weights = x[met].astype(wide, copy=False), w[taken].astype(wide, copy=False)
                with np.errstate(all="ignore"):
                    total[to] += (weights.T @ image.reshape(inner, -1)).reshape(outer, *image.shape[1:])
            if (bias := optional(ins, 2)) is not None:
                own = bias[group * outer : (group + 1) * outer]
                total += own.astype(wide).reshape(outer, *[1] * len(windows))
            np.copyto(out[n, group * outer : (group + 1) * outer], total, casting="unsafe")
