"""Products with a virtual matrix, such that training holds one layer's W at a time.

PyTorch keeps for the backward pass whatever an op needs there. For W that would be as many dense matrices as a net has
layers, so W is dropped after the forward pass and made again, from the weight vector, when its turn comes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from hashinfer.schemes import Dyadic, Scheme, Xxh32
from hashinfer.torch import transform
from hashinfer.torch.expand import cell_index, expand, fold_cells, pick_cells, wide


class _Layout(NamedTuple):
    """How a saved tensor lies in the storage of W."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def remade(make: Callable[[], Tensor], w: Tensor) -> Iterator[Tensor]:
    """`make()`, which ops called in this block do not keep for their backward pass: it is then made again.

    make: gives a tensor from the weight vector `w`, of the same values, sizes and strides each time.
    Raises RuntimeError in the backward pass if `w` was changed in place in between.
    """
    dense = make()
    if torch.compiler.is_compiling() or not dense.requires_grad or dense.device.type == "meta":
        yield dense
        return
    place, version = dense.untyped_storage().data_ptr(), w._version

    def pack(t: Tensor) -> Tensor | _Layout:
        if t.device.type == "meta" or t.untyped_storage().data_ptr() != place:
            return t
        return _Layout(t.size(), t.stride(), int(t.storage_offset()))

    def unpack(kept: Tensor | _Layout) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        if w._version != version:
            raise RuntimeError(
                "a weight vector was changed in place between the forward and the backward pass that uses it"
            )
        with torch.no_grad():
            return make().as_strided(*kept)

    with saved_tensors_hooks(pack, unpack):
        yield dense


def hashed_linear(x: Tensor, w: Tensor, scheme: Scheme, by_transform: bool | None = None) -> Tensor:
    """x @ W: x [..., rows], w [buckets] -> [..., cols].

    by_transform: whether a dyadic product is taken through the Walsh-Hadamard transform; None: where it is likely to
    be faster. An export, a compiled graph and an autocast region always see Expand and MatMul.
    """
    if _plain(x, w) or not isinstance(scheme, Dyadic) or x.shape[-1] != scheme.rows:
        by_transform = False
    elif by_transform is None:
        by_transform = transform.pays(scheme, x.numel() // scheme.rows, x)
    if by_transform and isinstance(scheme, Dyadic):
        y = transform.dyadic_product(x.reshape(-1, scheme.rows), w, scheme)
        return y.view(*x.shape[:-1], scheme.cols)
    with remade(lambda: expand(w, scheme), w) as dense:
        return x @ dense


def _plain(x: Tensor, w: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.dtype != w.dtype or x.device != w.device:
        return True
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def conv_weight(w: Tensor, scheme: Scheme, shape: tuple[int, ...]) -> Tensor:
    """The virtual weight [out, in / groups, kernel...] of a convolution: W transposed and reshaped."""
    return expand(w, scheme).t().reshape(shape)


def hashed_lookup(ids: Tensor, w: Tensor, scheme: Scheme) -> Tensor:
    """W[ids]: [..., cols]. Of a table that is much larger than `ids`, only the rows asked for are hashed.

    Raises IndexError for an id outside the table.
    """
    if torch.compiler.is_compiling() or not isinstance(scheme, Xxh32) or 2 * ids.numel() > scheme.rows or w.is_meta:
        return functional.embedding(ids, expand(w, scheme))
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < scheme.rows):
        raise IndexError(f"ids from {int(ids.min())} to {int(ids.max())}; the table has rows 0 to {scheme.rows - 1}")
    found: Tensor = _Rows.apply(w, ids, scheme, False)  # type: ignore[no-untyped-call]
    return found


class _Rows(Function):
    """Rows of W, [*ids.shape, cols], of w [buckets]; folded: the transpose of that, which is its gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, ids: Tensor, scheme: Xxh32, folded: bool) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.scheme, ctx.folded = scheme, folded
        index = cell_index(scheme, ids).to(values.device)
        if folded:
            return fold_cells(values.to(wide(values.dtype)), index, scheme.buckets).to(values.dtype)
        return pick_cells(values, index).view(*ids.shape, scheme.cols)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (ids,) = ctx.saved_tensors
        found: Tensor = _Rows.apply(grads[0], ids, ctx.scheme, not ctx.folded)  # type: ignore[no-untyped-call]
        return found, None, None, None
