"""Training with hashed layers: the transform, what is held between the passes, lookups, conversion, the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra hashinfer[torch] is not installed")
pytest.importorskip("onnxscript", reason="the extra hashinfer[torch] is not installed")
ort = pytest.importorskip("onnxruntime")

from torch import Tensor, nn  # noqa: E402
from torch.autograd.graph import saved_tensors_hooks  # noqa: E402
from torch.nn import functional  # noqa: E402

import hashinfer  # noqa: E402
import hashinfer.torch as ht  # noqa: E402
from hashinfer.errors import SchemeError  # noqa: E402
from hashinfer.schemes import Dyadic, Scheme, Xxh32  # noqa: E402
from hashinfer.torch import functional as hashed_functional  # noqa: E402
from hashinfer.torch import transform  # noqa: E402
from hashinfer.torch.expand import IndexCache, cell_index, expand, fold, index_cache  # noqa: E402
from tests import naive  # noqa: E402

SCHEMES = ["dyadic", "xxh32"]
SHAPES = [(40, 24, 64), (40, 24, 192), (64, 10, 64), (70, 33, 16), (5, 7, 1), (1, 9, 4), (130, 300, 128)]


def dyadic(rows: int, cols: int, buckets: int) -> Dyadic:
    return Dyadic.fit(rows, cols, buckets, 11)


def summed(scheme: Scheme, grad: np.ndarray) -> Tensor:
    """The sums over buckets of a matrix, signs applied, in float64."""
    bucket, sign = scheme.table()
    out = np.zeros(scheme.buckets)
    np.add.at(out, bucket, sign * grad)
    return torch.from_numpy(out)


def apart(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# W and its transpose.


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "scheme",
    [*(Dyadic.fit(*s, 3) for s in SHAPES), Xxh32(50, 40, 24, 9), Xxh32(50, 40, 24, 9, 7), Xxh32(1, 3, 2, 0)],
    ids=str,
)
def test_expand_and_fold(scheme, dtype):
    w = torch.randn(scheme.buckets, dtype=torch.float64).to(dtype)
    assert torch.equal(expand(w, scheme), torch.from_numpy(scheme.expand(w.double().numpy())).to(dtype))
    grad = torch.randn(scheme.rows, scheme.cols, dtype=torch.float64).to(dtype)
    # Sums are taken in float32 at least: what is left is the rounding of the result.
    assert apart(fold(grad, scheme), summed(scheme, grad.double().numpy())) < 4 * torch.finfo(dtype).eps


def test_cells_of_chosen_rows():
    scheme = Xxh32(37, 2**31 - 1, 11, 2**32 - 1, 4)
    rows = torch.tensor([0, 5, 2**31 - 2, 5])
    bucket, sign = scheme.cells(rows.numpy()[:, None], np.arange(11)[None, :])
    assert np.array_equal(cell_index(scheme, rows).numpy().reshape(4, 11), bucket + np.where(sign < 0, 37, 0))


def test_index_cache_stays_within_its_limit():
    cache = IndexCache(3 * 4 * 64 * 64)
    schemes = [Xxh32(64, 64, 64, seed) for seed in range(4)]
    cpu = torch.device("cpu")
    first = cache.get(schemes[0], cpu)
    assert cache.nbytes == 0
    for scheme in schemes:
        cache.keep(scheme)
    held = cache.get(schemes[0], cpu)
    assert torch.equal(held, first)
    assert cache.get(schemes[0], cpu) is held
    for scheme in schemes[1:]:
        cache.get(scheme, cpu)
    assert cache.nbytes == cache.limit
    assert cache.get(schemes[0], cpu) is not held
    cache.clear()
    assert cache.nbytes == 0
    small = IndexCache(100)
    small.keep(schemes[0])
    assert small.get(schemes[0], cpu).shape == (64 * 64,)
    assert small.nbytes == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("cached", [False, True])
def test_an_index_is_kept_between_steps_only_if_asked(scheme, cached):
    index_cache.clear()
    layer = ht.HashedLinear(64, 48, buckets=64, scheme=scheme, seed=3, cache_indices=cached)
    layer(torch.randn(5, 64)).sum().backward()
    assert index_cache.nbytes == (4 * 64 * 48 if cached and scheme == "xxh32" else 0)
    index_cache.clear()


# The transform.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_transform_equals_the_dense_product_with_its_gradients(shape, dtype):
    torch.manual_seed(1)
    scheme = dyadic(*shape)
    x = torch.randn(6, scheme.rows).to(dtype).double()
    w = torch.randn(scheme.buckets).to(dtype).double()
    slope = torch.randn(6, scheme.cols).to(dtype).double()
    dense = torch.from_numpy(scheme.expand(w.numpy()))
    xs, ws = (v.to(dtype, copy=True).requires_grad_() for v in (x, w))
    y = transform.dyadic_product(xs, ws, scheme)
    assert y.dtype == dtype
    y.backward(slope.to(dtype))
    most = 40 * torch.finfo(dtype).eps
    assert apart(y, x @ dense) < most
    assert apart(xs.grad, slope @ dense.t()) < most
    assert apart(ws.grad, summed(scheme, (x.t() @ slope).numpy())) < most


def test_hadamard_is_the_matrix():
    for width in (1, 2, 8, 64, 1024):
        v = torch.randn(3, width, dtype=torch.float64)
        expected = v @ torch.from_numpy(naive.hadamard_matrix(width))
        torch.testing.assert_close(transform.hadamard(v), expected)
        torch.testing.assert_close(transform.hadamard(v.float()).double(), expected, rtol=1e-4, atol=1e-4)


def test_transform_gradcheck_twice():
    scheme = dyadic(9, 5, 16)
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    w = torch.randn(16, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return torch.tanh(transform.dyadic_product(x, w, scheme))

    assert torch.autograd.gradcheck(call, (x, w))
    assert torch.autograd.gradgradcheck(call, (x, w))


@pytest.mark.parametrize("by_transform", [True, False, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_layer_computes_the_same_either_way(by_transform, dtype):
    torch.manual_seed(0)
    layer = ht.HashedLinear(300, 200, buckets=1024, seed=4, dtype=dtype)
    layer.by_transform = by_transform
    x = torch.randn(2, 5, 300, dtype=dtype, requires_grad=True)
    y = layer(x)
    torch.testing.assert_close(y, functional.linear(x, layer.weight, layer.bias), rtol=1e-4, atol=1e-5)
    y.square().sum().backward()
    grad = summed(layer.scheme, (x.detach().reshape(-1, 300).t() @ (2 * y.detach()).reshape(-1, 200)).numpy())
    assert apart(layer.weight_vector.grad, grad) < 1e-5


def test_transform_on_the_meta_device_and_where_it_pays():
    scheme = dyadic(784, 1000, 11264)
    x = torch.empty(128, 784)
    assert transform.pays(scheme, 128, x)
    assert not transform.pays(scheme, 128, x.double())
    assert not transform.pays(scheme, 128, x.to("meta"))
    assert not transform.pays(dyadic(784, 1000, 700_000), 128, x)
    w = torch.empty(11264, device="meta", requires_grad=True)
    y = transform.dyadic_product(x.to("meta"), w, scheme)
    assert y.shape == (128, 1000)
    y.sum().backward()
    assert w.grad.device.type == "meta"


def test_an_empty_batch():
    layer = ht.HashedLinear(300, 200, buckets=1024)
    for by_transform in (True, False):
        layer.by_transform = by_transform
        y = layer(torch.empty(0, 300))
        assert y.shape == (0, 200)
        y.sum().backward()
        assert torch.equal(layer.weight_vector.grad, torch.zeros(1024))


# What is held between the passes.


@contextmanager
def sizes_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The numbers in each tensor that autograd keeps for a backward pass, where our own hooks apply and elsewhere."""
    sizes: list[int] = []

    def note(kept: Any) -> Any:
        if isinstance(kept, Tensor):
            sizes.append(kept.numel())
        return kept

    class Hooks(saved_tensors_hooks):
        def __init__(self, pack: Callable[..., Any], unpack: Callable[..., Any]) -> None:
            super().__init__(lambda t: note(pack(t)), unpack)

    monkeypatch.setattr(hashed_functional, "saved_tensors_hooks", Hooks)
    with saved_tensors_hooks(note, lambda t: t):
        yield sizes


CASES: dict[str, tuple[Callable[[str], nn.Module], Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (
        lambda scheme: ht.HashedLinear(96, 80, buckets=128, scheme=scheme),
        lambda: nn.Linear(96, 80),
        (2, 96),
        96 * 80,
    ),
    "conv": (
        lambda scheme: ht.HashedConv2d(16, 32, 3, buckets=128, scheme=scheme),
        lambda: nn.Conv2d(16, 32, 3),
        (1, 16, 5, 5),
        16 * 32 * 9,
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_layer_keeps_its_w_for_the_backward_pass(case, scheme, monkeypatch):
    hashed, dense, shape, virtual = CASES[case]
    layer, twin = hashed(scheme), dense()
    x = torch.randn(shape, requires_grad=True)
    with sizes_kept(monkeypatch) as sizes:
        twin(x).sum().backward()
    assert max(sizes) >= virtual
    with sizes_kept(monkeypatch) as sizes:
        y = layer(x)
    assert max(sizes) < virtual
    x.grad = None
    y.square().sum().backward()
    again = x.detach().clone().requires_grad_()
    with torch.no_grad():
        twin.weight.copy_(layer.weight)
        twin.bias.copy_(layer.bias)
    twin(again).square().sum().backward()
    torch.testing.assert_close(x.grad, again.grad, rtol=1e-4, atol=1e-5)


def test_a_weight_vector_changed_between_the_passes_is_noticed():
    layer = ht.HashedLinear(96, 80, buckets=128, scheme="xxh32")
    y = layer(torch.randn(2, 96, requires_grad=True)).sum()
    with torch.no_grad():
        layer.weight_vector.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        y.backward()


# Lookups.


@pytest.mark.parametrize("block", [1, 4])
def test_lookup_of_few_rows_is_that_of_the_table(block):
    torch.manual_seed(0)
    table = ht.HashedEmbedding(500, 10, buckets=60, block=block, seed=1, dtype=torch.float64)
    few, many = torch.tensor([[3, 499, 0], [3, 3, 11]]), torch.arange(499)
    for ids in (few, many):
        table.zero_grad()
        out = table(ids)
        assert torch.equal(out, table.weight[ids])
        slope = torch.randn_like(out)
        out.backward(slope)
        grad = torch.zeros(500, 10, dtype=torch.float64).index_add_(0, ids.reshape(-1), slope.reshape(-1, 10))
        torch.testing.assert_close(table.weight_vector.grad, summed(table.scheme, grad.numpy()))
    w = table.weight_vector.detach().requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda w: torch.tanh(hashed_functional.hashed_lookup(few, w, table.scheme)), (w,)
    )
    with pytest.raises(IndexError, match="ids from 3 to 500; the table has rows 0 to 499"):
        table(torch.tensor([3, 500]))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
@pytest.mark.parametrize("form", ["rows", "offsets", "last offset", "weights", "weights and offsets"])
def test_embedding_bag_equals_dense(mode, padding_idx, form):
    if "weights" in form and mode != "sum":
        with pytest.raises(ValueError, match="per_sample_weights with mode"):
            ht.HashedEmbeddingBag(30, 10, mode)(torch.zeros(1, 2, dtype=torch.long), None, torch.ones(1, 2))
        return
    torch.manual_seed(0)
    last = form == "last offset"
    layer = ht.HashedEmbeddingBag(30, 10, mode, padding_idx, last, buckets=60, seed=1, dtype=torch.float64)
    dense = nn.EmbeddingBag(30, 10, mode=mode, padding_idx=padding_idx, include_last_offset=last, dtype=torch.float64)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
    ids, offsets = torch.tensor([3, 29, 0, 3, 3, 11, 3, 3, 3, 7, 8, 9]), torch.tensor([0, 3, 3, 6, 9])
    if last:
        offsets = torch.cat([offsets, torch.tensor([12])])
    weights = torch.rand(12, dtype=torch.float64) if "weights" in form else None
    if form in ("rows", "weights"):
        ids, offsets, weights = ids.view(4, 3), None, None if weights is None else weights.view(4, 3)
    y, expected = layer(ids, offsets, weights), dense(ids, offsets, weights)
    torch.testing.assert_close(y, expected)
    slope = torch.randn_like(y)
    y.backward(slope)
    expected.backward(slope)
    if mode != "max":
        torch.testing.assert_close(layer.weight_vector.grad, summed(layer.scheme, dense.weight.grad.numpy()))


def test_embedding_bag_refuses():
    with pytest.raises(ValueError, match="mode is 'median'"):
        ht.HashedEmbeddingBag(300, 10, "median")
    with pytest.raises(ValueError, match="no offsets"):
        ht.HashedEmbeddingBag(300, 10)(torch.arange(4))


# Round trips: the module, this engine and onnxruntime.


class BagNet(nn.Module):
    def __init__(self, mode: str, padding_idx: int | None = None) -> None:
        super().__init__()
        self.bag = ht.HashedEmbeddingBag(200, 16, mode, padding_idx, buckets=300, seed=7)
        self.out = ht.HashedLinear(16, 3, buckets=16)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.bag(ids))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


class Block(nn.Module):
    """A transformer block over an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(200, 32)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(128, 32)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        heads = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(heads.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))


ROUND_TRIPS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Tensor]]] = {
    "mlp": (mlp, lambda n: torch.randn(n, 40)),
    "cnn": (cnn, lambda n: torch.randn(n, 3, 14, 14)),
    "block": (Block, lambda n: torch.randint(0, 200, (n, 7))),
    "bag-sum": (lambda: BagNet("sum"), lambda n: torch.randint(0, 200, (n, 6))),
    "bag-mean-padded": (lambda: BagNet("mean", 3), lambda n: torch.randint(0, 9, (n, 6))),
    "bag-max-padded": (lambda: BagNet("max", 3), lambda n: torch.randint(0, 9, (n, 6))),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_round_trip(case, scheme, tmp_path):
    torch.manual_seed(0)
    make, sample = ROUND_TRIPS[case]
    net = ht.hash_module(make(), 4, scheme, min_size=200).eval()
    assert any(isinstance(m, ht.HashedLinear) for m in net.modules())
    path = tmp_path / "net.hnet"
    ht.save(net, sample(2), path, input_names=["x"], output_names=["y"])
    ours, theirs = hashinfer.InferenceSession(path), ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert ours.report()["fallbacks"] == []
    for n in (1, 5):
        x = sample(n)
        expected = net(x).detach().numpy()
        np.testing.assert_allclose(ours.run(None, {"x": x.numpy()})[0], expected, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(theirs.run(None, {"x": x.numpy()})[0], expected, rtol=1e-4, atol=2e-5)


# Dtypes and devices.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", ["linear", "transform", "conv", "embedding", "bag", "bag offsets"])
def test_every_layer_on_every_device_in_every_dtype(kind, scheme, device, dtype):
    torch.manual_seed(0)
    at: dict[str, Any] = {"device": device, "dtype": dtype}
    arguments: tuple[Any, ...] = (torch.randn(3, 64, **at),)
    if kind in ("linear", "transform"):
        layer: nn.Module = ht.HashedLinear(64, 32, buckets=64, scheme=scheme, **at)
        layer.by_transform = kind == "transform"
        shape = (3, 32)
    elif kind == "conv":
        layer = ht.HashedConv2d(8, 16, 3, buckets=64, scheme=scheme, **at)
        arguments, shape = (torch.randn(3, 8, 5, 5, **at),), (3, 16, 3, 3)
    else:
        ids = torch.randint(0, 50, (3, 4), device=device)
        arguments, shape = (ids,), (3, 4, 16)
        layer = ht.HashedEmbedding(50, 16, buckets=64, **at)
        if kind != "embedding":
            layer, shape = ht.HashedEmbeddingBag(50, 16, buckets=64, **at), (3, 16)
        if kind == "bag offsets":
            arguments = (ids.reshape(-1), torch.arange(0, 12, 4, device=device))
    y = layer(*arguments)
    assert (y.shape, y.dtype, y.device.type) == (shape, dtype, device)
    y.sum().backward()
    grad = layer.weight_vector.grad
    assert (grad.shape, grad.dtype, grad.device.type) == ((64,), dtype, device)
    if device == "meta":
        return
    twin = layer.double()
    exact = twin(*(a.double() if a.is_floating_point() else a for a in arguments))
    assert apart(y, exact.detach()) < 30 * torch.finfo(dtype).eps


# From a dense model.


def test_hash_module_swaps_in_place():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Sequential(nn.Conv2d(8, 32, 3), nn.Linear(8, 4)))
    model.append(nn.Embedding(100, 32)).append(nn.EmbeddingBag(100, 32, mode="sum", padding_idx=2))
    model.double().eval()
    assert ht.hash_module(model, 8, seed=5) is model
    kinds = [type(m) for m in model]
    assert kinds == [ht.HashedLinear, nn.ReLU, nn.Sequential, ht.HashedEmbedding, ht.HashedEmbeddingBag]
    assert [type(m) for m in model[2]] == [ht.HashedConv2d, nn.Linear]
    assert [m.scheme.seed for m in model.modules() if hasattr(m, "scheme")] == [5, 6, 7, 8]
    assert model[4].mode == "sum"
    assert model[4].padding_idx == 2
    assert not any(m.training for m in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float64}


def test_hash_module_by_name_and_by_size():
    def fresh() -> nn.Module:
        return nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64), "c": nn.Linear(8, 8)})

    model = ht.hash_module(fresh(), 8, layers=["b"])
    assert [type(m) for m in model.values()] == [nn.Linear, ht.HashedLinear, nn.Linear]
    assert isinstance(ht.hash_module(fresh(), 8, min_size=0)["c"], ht.HashedLinear)
    assert isinstance(ht.hash_module(fresh(), 8, "xxh32", block=4)["a"].scheme, Xxh32)
    with pytest.raises(ValueError, match="layers 'd' matches none; there are 'a', 'b', 'c'"):
        ht.hash_module(fresh(), 8, layers=["d"])


def test_hash_module_leaves_what_it_cannot_swap():
    attention = nn.MultiheadAttention(64, 4, batch_first=True)
    x = torch.randn(2, 5, 64)
    expected = attention(x, x, x)[0]
    torch.testing.assert_close(ht.hash_module(attention, 8)(x, x, x)[0], expected)
    hooked = nn.Linear(64, 64)
    hooked.register_forward_hook(lambda *_: None)
    assert ht.hash_module(hooked, 8) is hooked
    assert isinstance(ht.hash_module(nn.Linear(64, 64), 8), ht.HashedLinear)
    assert isinstance(ht.hash_module(nn.Embedding(64, 64, max_norm=1.0), 8), nn.Embedding)
    tied = nn.ModuleList([nn.Embedding(64, 32), nn.Linear(32, 64)])
    tied[1].weight = tied[0].weight
    with pytest.warns(UserWarning, match="is shared with another module: it stays dense"):
        ht.hash_module(tied, 8)
    assert tied[1].weight is tied[0].weight


def test_hash_module_keeps_one_module_one():
    layer = nn.Linear(64, 64)
    model = ht.hash_module(nn.Sequential(layer, nn.ReLU(), layer), 8)
    assert model[0] is model[2]
    assert isinstance(model[0], ht.HashedLinear)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_hash_module_from_the_weights(scheme):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Conv2d(8, 32, 3), nn.Embedding(100, 32))
    dense = [p.detach().clone() for p in model.parameters()]
    ht.hash_module(model, 4, scheme, init="weights")
    for layer, weight in zip(model, (dense[0].t(), dense[2].reshape(32, -1).t(), dense[4]), strict=True):
        bucket, sign = layer.scheme.table()
        sums = np.bincount(bucket.ravel(), (sign * weight.numpy()).ravel(), layer.scheme.buckets)
        mean = sums / np.maximum(1, np.bincount(bucket.ravel(), minlength=layer.scheme.buckets))
        cosine = functional.cosine_similarity(layer.weight_vector.detach(), torch.from_numpy(mean).float(), 0)
        assert float(cosine) > 0.99999
        assert float(layer.expand().detach().norm()) == pytest.approx(float(weight.norm()), rel=1e-4)
        layer.fit_weight(weight)
        torch.testing.assert_close(layer.weight_vector.detach(), torch.from_numpy(mean).float())
    assert torch.equal(model[0].bias, dense[1])
    assert torch.equal(model[1].bias, dense[3])
    with pytest.raises(ValueError, match=r"shape \[2, 2\]; expected \[64, 48\]"):
        model[0].fit_weight(torch.zeros(2, 2))


def test_a_matrix_that_is_hashed_already_is_found_again():
    layer = ht.HashedLinear(64, 48, buckets=128, seed=3)
    w = layer.weight_vector.detach().clone()
    layer.fit_weight(layer.weight.detach().t(), keep_norm=True)
    torch.testing.assert_close(layer.weight_vector.detach(), w)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"init": "zeros"}, ValueError, "init is 'zeros'"),
        ({"compression": 0}, SchemeError, "compression is 0"),
        ({"scheme": "md5"}, SchemeError, "scheme 'md5'"),
        ({"seed": -1}, SchemeError, "seed is -1"),
        ({"block": 0}, SchemeError, "block is 0"),
    ],
)
def test_hash_module_refuses(options, kind, message):
    model = nn.Linear(64, 64)
    with pytest.raises(kind, match=message):
        ht.hash_module(model, **options)


# The loss.


def test_distillation_loss_is_the_papers():
    student = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    teacher, labels = torch.randn(4, 5, dtype=torch.float64, requires_grad=True), torch.tensor([1, 0, 4, 2])
    found = ht.distillation_loss(student, teacher, labels, temperature=3.0, weight=0.7)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    soft = (p * (p.log() - q.log())).sum(1).mean()
    hard = -student.log_softmax(1)[torch.arange(4), labels].mean()
    torch.testing.assert_close(found, 0.7 * 9 * soft + 0.3 * hard)
    torch.testing.assert_close(ht.distillation_loss(student, teacher, temperature=3.0), 9 * soft)
    found.backward()
    assert teacher.grad is None
    grown = torch.stack([student, student])
    torch.testing.assert_close(
        ht.distillation_loss(grown, torch.stack([teacher, teacher]), torch.stack([labels, labels])),
        ht.distillation_loss(student, teacher, labels),
    )
    assert float(ht.distillation_loss(teacher, teacher).detach()) == pytest.approx(0, abs=1e-12)


def test_distillation_loss_refuses():
    x = torch.randn(4, 5)
    with pytest.raises(ValueError, match="shapes"):
        ht.distillation_loss(x, x[:2])
    with pytest.raises(ValueError, match="temperature is 0"):
        ht.distillation_loss(x, x, temperature=0)
    with pytest.raises(ValueError, match="weight is 2"):
        ht.distillation_loss(x, x, weight=2)
