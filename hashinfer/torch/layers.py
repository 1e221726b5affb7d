"""Hashed layers: nn.Linear, nn.Conv2d, nn.Embedding and nn.EmbeddingBag with a weight vector in place of the weight.

Source: HashedNets, Chen et al., ICML 2015.
"""

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
from hashinfer.torch.expand import expand, fold, index_cache
from hashinfer.torch.functional import conv_weight, hashed_linear, hashed_lookup, remade

DEFAULT_COMPRESSION = 64.0

Pair = int | tuple[int, int]


def fit_scheme(
    name: str, rows: int, cols: int, compression: float, buckets: int | None, seed: int, block: int, width: int | None
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
        check_compression(compression)
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


def check_compression(compression: float) -> None:
    """Raise SchemeError unless `compression` is a finite number above 0."""
    if not (math.isfinite(compression) and compression > 0):
        raise SchemeError(f"compression is {compression!r}; expected a finite number above 0")


class HashedModule(nn.Module):
    """What every hashed layer has: `weight_vector` [K], a Parameter; `seed`, an int64 buffer; `scheme`.

    cache_indices: keep the table of buckets, int32 [rows * cols], of an xxh32 layer between calls, in at most 256 MiB
    for all layers together. Without it training hashes anew in each pass, which costs about a third of a nanosecond a
    virtual weight on the CPU.
    """

    weight_vector: nn.Parameter
    seed: Tensor

    def __init__(self, scheme: Scheme, device: Any, dtype: torch.dtype | None, *, cache_indices: bool = False) -> None:
        super().__init__()
        self.scheme = scheme
        self.cache_indices = cache_indices
        self.weight_vector = nn.Parameter(torch.empty(scheme.buckets, device=device, dtype=dtype))
        self.register_buffer("seed", torch.tensor(scheme.seed, dtype=torch.int64, device=device))

    def expand(self) -> Tensor:
        """The virtual matrix W [rows, cols] of the scheme, in the weight vector's dtype; differentiable."""
        self._note_cache()
        return expand(self.weight_vector, self.scheme)

    @torch.no_grad()
    def fit_weight(self, weight: Tensor, keep_norm: bool = False) -> None:
        """Set the weight vector from a dense W [rows, cols]: the least-squares one, which is the mean over each bucket.

        keep_norm: scale it so that the virtual matrix has the norm of `weight`. The least-squares one is smaller, as
        means are; a net that is trained further may start better at full scale.
        Raises ValueError for another shape.
        """
        rows, cols = self.scheme.rows, self.scheme.cols
        if weight.shape != (rows, cols):
            raise ValueError(f"the weight has shape {list(weight.shape)}; expected [{rows}, {cols}]")
        self._note_cache()
        exact = weight.to(self.weight_vector.device, torch.float64)
        counts = fold(expand(torch.ones_like(self.weight_vector, dtype=torch.float64), self.scheme), self.scheme)
        sums = fold(exact, self.scheme)
        mean = sums / counts.clamp(min=1)
        if keep_norm:
            kept = float((mean * sums).sum())
            mean *= math.sqrt(float(exact.square().sum()) / kept) if kept > 0 else 1.0
        self.weight_vector.copy_(mean)

    def _note_cache(self) -> None:
        if self.cache_indices and not torch.compiler.is_compiling():
            index_cache.keep(self.scheme)

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


class HashedWithBias(HashedModule):
    """What HashedLinear and HashedConv2d share: `bias` [cols] or None."""

    bias: nn.Parameter | None

    def __init__(
        self, scheme: Scheme, bias: bool, device: Any, dtype: torch.dtype | None, *, cache_indices: bool = False
    ) -> None:
        super().__init__(scheme, device, dtype, cache_indices=cache_indices)
        numbers = nn.Parameter(torch.empty(scheme.cols, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", numbers)

    def reset_parameters(self) -> None:
        """Draw the weight vector and the bias anew, as the dense layer does."""
        # Each virtual weight is one stored number up to sign, so the dense layer's distribution is the right one here.
        bound = 1 / math.sqrt(self.scheme.rows)
        nn.init.uniform_(self.weight_vector, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)


class HashedLinear(HashedWithBias):
    """nn.Linear with a virtual weight W [in_features, out_features]: y = x @ W + b.

    x: [..., in_features]; y: [..., out_features], in the dtype of x and the weights. Stored: `weight_vector` [K] and
    `bias` [out_features]. K is at most `buckets`, or floor(in_features out_features / compression) if that is None;
    scheme "dyadic" takes the largest multiple of its width. Both are initialised as nn.Linear initialises, so the
    virtual weights keep its variance. A dyadic layer goes through the Walsh-Hadamard transform where that is likely to
    be faster; its attribute `by_transform`, None, can be set to True or False to decide otherwise.
    Warns (UserWarning) if scheme "dyadic" has more outputs than buckets. Raises SchemeError for a scheme, seed,
    budget, block or width out of range.
    Source: HashedNets, Chen et al., ICML 2015.
    """

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
        cache_indices: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        fitted = fit_scheme(scheme, in_features, out_features, compression, buckets, seed, block, width)
        super().__init__(fitted, bias, device, dtype, cache_indices=cache_indices)
        self.in_features = in_features
        self.out_features = out_features
        self.by_transform: bool | None = None
        self.reset_parameters()

    @property
    def weight(self) -> Tensor:
        """The virtual weight in nn.Linear's layout, [out_features, in_features]."""
        return self.expand().t()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        self._note_cache()
        y = hashed_linear(x, self.weight_vector, self.scheme, self.by_transform)
        # Under autocast y is narrower than the bias, and nn.Linear's output is as narrow.
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, {self._scheme_repr()}"
        )


class HashedConv2d(HashedWithBias):
    """nn.Conv2d with a virtual weight W [in_channels / groups * kh * kw, out_channels].

    Rows of W are in (channel, kh, kw) order; the convolution's weight is W transposed and reshaped to
    [out_channels, in_channels / groups, kh, kw]. x: [N, in_channels, H, W] or [in_channels, H, W]. Stored:
    `weight_vector` [K] and `bias` [out_channels], sized and initialised as in HashedLinear. Raises SchemeError for a
    scheme, seed, budget, block or width out of range; ValueError as nn.Conv2d for its own arguments. Warns
    (UserWarning) if scheme "dyadic" has more output channels than buckets.
    Source: HashedNets, Chen et al., ICML 2015.
    """

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
        cache_indices: bool = False,
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
        inputs = in_channels // groups * kh * kw
        fitted = fit_scheme(scheme, inputs, out_channels, compression, buckets, seed, block, width)
        super().__init__(fitted, bias, device, dtype, cache_indices=cache_indices)
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
        self.reset_parameters()

    @property
    def weight(self) -> Tensor:
        """The virtual weight in nn.Conv2d's layout, [out_channels, in_channels / groups, kh, kw]."""
        self._note_cache()
        return conv_weight(self.weight_vector, self.scheme, self._weight_shape)

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H', W']; also without N."""
        padding = self.padding
        if self.padding_mode != "zeros":
            x, padding = functional.pad(x, self._edges, mode=self.padding_mode), (0, 0)
        with remade(lambda: self.weight, self.weight_vector) as weight:
            return functional.conv2d(x, weight, self.bias, self.stride, padding, self.dilation, self.groups)

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
        cache_indices: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        fitted = fit_scheme(Xxh32.name, num_embeddings, embedding_dim, compression, buckets, seed, block, None)
        super().__init__(fitted, device, dtype, cache_indices=cache_indices)
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
        self._note_cache()
        out = hashed_lookup(ids, self.weight_vector, self.scheme)
        # A hashed row shares its numbers with all others: it cannot itself be set to zero.
        return out if self.padding_idx is None else out.masked_fill((ids == self.padding_idx).unsqueeze(-1), 0.0)

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {self._scheme_repr()}"


class HashedEmbeddingBag(HashedEmbedding):
    """nn.EmbeddingBag with a virtual table: the sum, mean or maximum of the vectors of each bag.

    ids: int64 or int32 [bags, length], or [count] with `offsets` [bags], where each bag begins; out: [bags,
    embedding_dim]. Stored numbers, arguments and errors as in HashedEmbedding, and `mode` "sum", "mean" or "max",
    `include_last_offset` as in nn.EmbeddingBag. Ids equal to `padding_idx` are left out of their bag; a bag of none
    is zero. Only ids [bags, length] can be exported. Source: HashedNets, Chen et al., ICML 2015.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        *,
        compression: float = DEFAULT_COMPRESSION,
        buckets: int | None = None,
        seed: int = 0,
        block: int = 1,
        cache_indices: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if mode not in ("sum", "mean", "max"):
            raise ValueError(f"mode is {mode!r}; expected 'sum', 'mean' or 'max'")
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            compression=compression,
            buckets=buckets,
            seed=seed,
            block=block,
            cache_indices=cache_indices,
            device=device,
            dtype=dtype,
        )
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """[bags, length], or [count] and offsets, -> [bags, embedding_dim]. Weights have ids' shape, for mode "sum"."""
        if per_sample_weights is not None and self.mode != "sum":
            raise ValueError(f"per_sample_weights with mode {self.mode!r}; expected mode 'sum'")
        self._note_cache()
        # A table of the rows asked for, in their order: bags over it need no others.
        vectors = hashed_lookup(ids, self.weight_vector, self.scheme)
        if ids.ndim == 2 and offsets is None:
            return self._rows(ids, vectors, per_sample_weights)
        if self.padding_idx is not None and self.mode != "max":
            present = (ids != self.padding_idx).to(vectors.dtype)
            per_sample_weights = present if per_sample_weights is None else per_sample_weights * present
        return self._bags(ids, vectors, offsets, per_sample_weights)

    def _bags(self, ids: Tensor, vectors: Tensor, offsets: Tensor | None, weights: Tensor | None) -> Tensor:
        if offsets is None:
            raise ValueError(f"ids have shape {list(ids.shape)} and there are no offsets; expected [bags, length]")
        starts = offsets[:-1] if self.include_last_offset else offsets
        bag = torch.bucketize(torch.arange(len(ids), device=ids.device), starts.to(torch.int64), right=True) - 1
        shape = (len(starts), self.embedding_dim)
        if self.mode == "max":
            low = float("-inf")
            if self.padding_idx is not None:
                vectors = vectors.masked_fill((ids == self.padding_idx).unsqueeze(-1), low)
            out = vectors.new_full(shape, low)
            out = out.scatter_reduce(0, bag.unsqueeze(-1).expand_as(vectors), vectors, "amax")
            return out.masked_fill(out == low, 0.0)
        weighted = vectors if weights is None else vectors * weights.unsqueeze(-1)
        out = vectors.new_zeros(shape).index_add(0, bag, weighted)
        if self.mode == "sum":
            return out
        counted = vectors.new_ones(len(ids)) if weights is None else weights
        count = vectors.new_zeros(len(starts)).index_add(0, bag, counted)
        return out / count.clamp(min=1).unsqueeze(-1)

    def _rows(self, ids: Tensor, vectors: Tensor, weights: Tensor | None) -> Tensor:
        present = None if self.padding_idx is None else (ids != self.padding_idx).unsqueeze(-1)
        if weights is not None:
            vectors = vectors * weights.unsqueeze(-1)
        if present is not None:
            vectors = vectors.masked_fill(~present, float("-inf") if self.mode == "max" else 0.0)
        if self.mode == "max":
            out = vectors.amax(1)
            return out if present is None else out.masked_fill(~present.any(1), 0.0)
        if self.mode == "sum":
            return vectors.sum(1)
        if present is None:
            return vectors.mean(1)
        return vectors.sum(1) / present.sum(1).clamp(min=1).to(vectors.dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, mode={self.mode!r}"
