"""Hashed layers: nn.Linear, nn.Conv2d and nn.Embedding with a stored weight vector in place of the weight.

Source: HashedNets, Chen et al., ICML 2015.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hashinfer.errors import SchemeError
from hashinfer.schemes import Dyadic, Scheme, Xxh32, scheme_named
from hashinfer.schemes.base import MAX_SEED, check_range
from hashinfer.torch.expand import expand

DEFAULT_COMPRESSION = 64.0

Pair = int | tuple[int, int]


def fit_scheme(
    name: str,
    rows: int,
    cols: int,
    *,
    compression: float = DEFAULT_COMPRESSION,
    buckets: int | None = None,
    seed: int = 0,
    block: int = 1,
    width: int | None = None,
) -> Scheme:
    """The scheme `name` for W [rows, cols] in at most `buckets` numbers, or floor(rows cols / compression) if None.

    `block` is for xxh32, `width` for dyadic. Raises SchemeError for a parameter out of range or of the other scheme.
    """
    kind = scheme_named(name)
    if kind is Dyadic and block != 1:
        raise SchemeError(f"block is {block!r} with scheme 'dyadic'; expected 1, runs belong to scheme 'xxh32'")
    if kind is Xxh32 and width is not None:
        raise SchemeError(f"width is {width!r} with scheme 'xxh32'; expected None, a width belongs to scheme 'dyadic'")
    if buckets is None:
        if not (math.isfinite(compression) and compression > 0):
            raise SchemeError(f"compression is {compression!r}; expected a finite number above 0")
        buckets = math.floor(rows * cols / compression)
    scheme = kind.fit(rows, cols, buckets, seed, width if kind is Dyadic else block)
    if kind is Dyadic and cols > scheme.buckets:
        warnings.warn(
            f"{cols} outputs over {scheme.buckets} buckets: columns of the virtual matrix repeat up to sign; "
            "take more buckets, or scheme 'xxh32'",
            UserWarning,
            stacklevel=3,
        )
    return scheme


class HashedModule(nn.Module):
    """What every hashed layer has: `weight_vector` [K], a Parameter; `seed`, an int64 buffer; `scheme`."""

    weight_vector: nn.Parameter
    seed: Tensor

    def __init__(self, scheme: Scheme, device: Any, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.scheme = scheme
        self.weight_vector = nn.Parameter(torch.empty(scheme.buckets, device=device, dtype=dtype))
        self.register_buffer("seed", torch.tensor(scheme.seed, dtype=torch.int64, device=device))

    def expand(self) -> Tensor:
        """The virtual matrix W [rows, cols] of the scheme, in the weight vector's dtype; differentiable."""
        return expand(self.weight_vector, self.scheme)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        before = len(error_msgs)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if len(error_msgs) > before or f"{prefix}seed" not in state_dict:
            return
        seed = int(state_dict[f"{prefix}seed"])
        try:
            check_range(f"{prefix}seed", seed, 0, MAX_SEED)
        except SchemeError as error:
            self.seed.fill_(self.scheme.seed)
            error_msgs.append(str(error))
            return
        self.scheme = replace(self.scheme, seed=seed)

    def _scheme_repr(self) -> str:
        s = self.scheme
        return f"scheme={s.name!r}, buckets={s.buckets}, seed={s.seed}, {s.parameter}={s.attributes()[s.parameter]}"


def _init_uniform(weight_vector: Tensor, bias: Tensor | None, fan_in: int) -> None:
    # Each virtual weight is one stored number up to sign, so the dense layer's distribution is the right one here.
    bound = 1 / math.sqrt(fan_in)
    nn.init.uniform_(weight_vector, -bound, bound)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


class HashedLinear(HashedModule):
    """nn.Linear with a virtual weight W [in_features, out_features]: y = x @ W + b.

    x: [..., in_features]; y: [..., out_features], in the dtype of x and the weights. Stored: `weight_vector` [K] and
    `bias` [out_features]. K is at most `buckets`, or floor(in_features out_features / compression) if that is None;
    scheme "dyadic" takes the largest multiple of its width. Both are initialised as nn.Linear initialises, so the
    virtual weights keep its variance. Warns (UserWarning) if scheme "dyadic" has more outputs than buckets.
    Raises SchemeError for a scheme, seed, budget, block or width out of range.
    Source: HashedNets, Chen et al., ICML 2015.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        compression: float = DEFAULT_COMPRESSION,
        buckets: int | None = None,
        scheme: str = "dyadic",
        seed: int = 0,
        block: int = 1,
        width: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        fitted = fit_scheme(
            scheme,
            in_features,
            out_features,
            compression=compression,
            buckets=buckets,
            seed=seed,
            block=block,
            width=width,
        )
        super().__init__(fitted, device, dtype)
        self.in_features = in_features
        self.out_features = out_features
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    @property
    def weight(self) -> Tensor:
        """The virtual weight in nn.Linear's layout, [out_features, in_features]."""
        return self.expand().t()

    def reset_parameters(self) -> None:
        """Draw the weight vector and the bias anew, as nn.Linear does."""
        _init_uniform(self.weight_vector, self.bias, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        y = x @ self.expand()
        # Under autocast y is narrower than the bias, and nn.Linear's output is as narrow.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._scheme_repr()}"
        )


class HashedConv2d(HashedModule):
    """nn.Conv2d with a virtual weight W [in_channels / groups * kh * kw, out_channels].

    Rows of W are in (channel, kh, kw) order; the convolution's weight is W transposed and reshaped to
    [out_channels, in_channels / groups, kh, kw]. x: [N, in_channels, H, W] or [in_channels, H, W]. Stored:
    `weight_vector` [K] and `bias` [out_channels], sized and initialised as in HashedLinear. Raises SchemeError for a
    scheme, seed, budget, block or width out of range; ValueError as nn.Conv2d for its own arguments. Warns
    (UserWarning) if scheme "dyadic" has more output channels than buckets.
    Source: HashedNets, Chen et al., ICML 2015.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Pair,
        stride: Pair = 1,
        padding: str | Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        compression: float = DEFAULT_COMPRESSION,
        buckets: int | None = None,
        scheme: str = "dyadic",
        seed: int = 0,
        block: int = 1,
        width: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # Its weight is never allocated: it checks the arguments and works out the padding.
        twin = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device="meta",
        )
        kh, kw = twin.kernel_size
        fan_in = in_channels // groups * kh * kw
        fitted = fit_scheme(
            scheme,
            fan_in,
            out_channels,
            compression=compression,
            buckets=buckets,
            seed=seed,
            block=block,
            width=width,
        )
        super().__init__(fitted, device, dtype)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (kh, kw)
        self.stride = twin.stride
        self.padding = twin.padding
        self.dilation = twin.dilation
        self.groups = groups
        self.padding_mode = padding_mode
        self._edges = list(twin._reversed_padding_repeated_twice)
        self._twin_repr = str(twin.extra_repr())  # type: ignore[no-untyped-call]
        self.register_parameter(
            "bias", nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        )
        self.reset_parameters()

    @property
    def weight(self) -> Tensor:
        """The virtual weight in nn.Conv2d's layout, [out_channels, in_channels / groups, kh, kw]."""
        return self.expand().t().reshape(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def reset_parameters(self) -> None:
        """Draw the weight vector and the bias anew, as nn.Conv2d does."""
        _init_uniform(self.weight_vector, self.bias, self.scheme.rows)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H', W']; also without N."""
        if self.padding_mode == "zeros":
            return functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        x = functional.pad(x, self._edges, mode=self.padding_mode)
        return functional.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return f"{self._twin_repr}, {self._scheme_repr()}"


class HashedEmbedding(HashedModule):
    """nn.Embedding with a virtual table W [num_embeddings, embedding_dim], always of scheme "xxh32".

    ids: int64 or int32 of any shape; out: ids.shape + [embedding_dim]. Stored: `weight_vector` [K], drawn from N(0, 1)
    as nn.Embedding draws. `block` neighbours in a vector share one hash. The vector of `padding_idx` is all zeros and
    passes no gradient. Raises SchemeError for a seed, budget or block out of range; ValueError for a `padding_idx`
    outside the table. Source: HashedNets, Chen et al., ICML 2015.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        compression: float = DEFAULT_COMPRESSION,
        buckets: int | None = None,
        seed: int = 0,
        block: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        fitted = fit_scheme(
            Xxh32.name, num_embeddings, embedding_dim, compression=compression, buckets=buckets, seed=seed, block=block
        )
        super().__init__(fitted, device, dtype)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx is {padding_idx}; expected from {-num_embeddings} to {num_embeddings - 1} or None"
            )
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx if padding_idx is None else padding_idx % num_embeddings
        self.reset_parameters()

    @property
    def weight(self) -> Tensor:
        """The virtual table [num_embeddings, embedding_dim], the row of `padding_idx` as hashed."""
        return self.expand()

    def reset_parameters(self) -> None:
        """Draw the weight vector anew, as nn.Embedding does."""
        nn.init.normal_(self.weight_vector)

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., embedding_dim]."""
        out = functional.embedding(ids, self.expand())
        # A hashed row shares its numbers with all others: it cannot itself be set to zero.
        return out if self.padding_idx is None else out.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {self._scheme_repr()}"
